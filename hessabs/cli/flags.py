"""Flags from declared settings: one field, one flag; what cannot be used ends in one line."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

if TYPE_CHECKING:
    from hessabs.training.fields import Field


class _Parser(flags.ArgumentParser[Any]):
    """Reads the text of one field; absl puts the name of the flag before its errors."""

    def __init__(self, field: "Field") -> None:
        self.field = field

    def parse(self, argument: Any) -> Any:
        from hessabs.training.fields import from_text  # after the signal handler: JAX comes with the package

        return from_text(self.field, argument) if isinstance(argument, str) else argument

    def flag_type(self) -> str:
        field = self.field
        if field.choices:
            return "|".join((*field.choices, *(["FILE.py:factory"] if field.open else [])))
        return "N,N,..." if field.kind is tuple and field.item is not str else field.kind.__name__


def config_flags(*settings_types: Any) -> flags.FlagValues:
    """Define a flag for each field of some settings, apart from absl's global flags.

    Raises:
      ValueError: If a field stands in two of them and is not declared the same.
    """
    from hessabs.training.fields import declared

    values = flags.FlagValues()
    for field in declared(*settings_types).values():
        if field.kind is bool:
            flags.DEFINE_bool(field.name, field.default, field.help, flag_values=values)
        else:
            _define(field, values)
    return values


def _define(field: "Field", values: flags.FlagValues) -> None:
    serializer = flags.ArgumentSerializer[Any]()
    flags.DEFINE(
        _Parser(field), field.name, field.default, field.help, flag_values=values, serializer=serializer
    )


def given(settings_type: Any, values: flags.FlagValues) -> set[str]:
    """List the fields of some settings that were typed, those that were given their default too."""
    return {name for name in settings_type._fields if values[name].present}


def read_config(settings_type: Any, values: flags.FlagValues) -> Any:
    """Make settings of parsed flags."""
    return settings_type(**{name: values[name].value for name in settings_type._fields})


def parse(
    values: flags.FlagValues, command: str, argv: Sequence[str], rest: list[str] | None = None, names: str = ""
) -> bool:
    """Parse flags, or print them for --help.

    Args:
      values: The flags that are defined.
      command: The name of the command.
      argv: What was typed after it.
      rest: Gets the arguments that are no flags; None if the command takes none.
      names: What those are called in the usage.

    Returns:
      True for --help, and then there is nothing more to do.

    Raises:
      ValueError: For an argument that is no flag, if the command takes none.
    """
    if {"-h", "--help", "-help"} & set(argv):
        print(f"usage: hessabs {command} {names + ' ' if names else ''}[--flag=value ...]\n")
        for name in values:
            flag = values[name]
            kind = "true|false" if flag.boolean else flag.flag_type()
            default = "" if flag.default is None else f" (default: {_as_typed(flag.default)})"
            print(f"  --{name}={kind}\n      {flag.help}{default}")
        return True
    arguments = values([command, *argv])[1:]
    if rest is not None:
        rest += arguments
    elif arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; every setting is a flag, --name=value.")
    return False


def _as_typed(default: Any) -> str:
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def say(text: object) -> None:
    """Tell the user something in one line on standard error."""
    print("hessabs: " + " ".join(str(text).split()), file=sys.stderr)


def refuse(error: object) -> int:
    """Say in one line on standard error what cannot be used, and return the exit status, 2.

    Raises:
      BrokenPipeError: If that is what the error is.
    """
    if isinstance(error, BrokenPipeError):  # an OSError like those of files, but the reader's doing
        raise error
    say(error)
    return 2
