"""Flags from declared settings: one field, one flag; what cannot be used ends in one line."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from hessabs.terminal import printable

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
        if field.kind is tuple:
            return "NAME,NAME,..." if field.item is str else "N,N,..."
        return field.kind.__name__


def config_flags(*settings_types: Any) -> flags.FlagValues:
    """Define a flag for each field of some settings, apart from absl's global flags.

    Raises:
      ValueError: If a field stands in two of them and is not declared the same.
    """
    from hessabs.training.fields import declared

    values, serializer = flags.FlagValues(), flags.ArgumentSerializer[Any]()
    for field in declared(*settings_types).values():
        named = (field.name, field.default, field.help)
        if field.kind is bool:
            flags.DEFINE_bool(*named, flag_values=values)
        else:
            flags.DEFINE(_Parser(field), *named, flag_values=values, serializer=serializer)
    return values


def given(settings_type: Any, values: flags.FlagValues) -> set[str]:
    """List the fields of some settings that were typed, those that were given their default too."""
    return {name for name in settings_type._fields if values[name].present}


def read_config(settings_type: Any, values: flags.FlagValues) -> Any:
    """Make settings of parsed flags; a ValueError: one is out of its range."""
    from hessabs.training.fields import check

    settings = settings_type(**{name: values[name].value for name in settings_type._fields})
    check(settings)
    return settings


def parse(
    values: flags.FlagValues, command: str, argv: Sequence[str], words: str | None = None
) -> list[str] | None:
    """Parse what was typed after a command, and return what is no flag; None for --help, which is printed.

    ``words``: what the usage calls that; None if the command takes nothing but flags.
    """
    if {"-h", "--help", "-help"} & set(argv):
        print(f"usage: hessabs {command} {words + ' ' if words else ''}[--flag=value ...]\n")
        for name in values:
            flag = values[name]
            kind = "true|false" if flag.boolean else flag.flag_type()
            default = "" if flag.default is None else f" (default: {_as_typed(flag.default)})"
            print(f"  --{name}={kind}\n      {flag.help}{default}")
        return None
    arguments: list[str] = values([command, *argv])[1:]
    if arguments and words is None:
        raise ValueError(f"unexpected argument {arguments[0]!r}; every setting is a flag, --name=value.")
    return arguments


def _as_typed(default: Any) -> str:
    if isinstance(default, list | tuple):
        return ",".join(map(str, default))
    return str(default).lower() if isinstance(default, bool) else str(default)


def refuse(error: object) -> int:
    """Say in one line on standard error what cannot be used, and return the exit status, 2."""
    if isinstance(error, BrokenPipeError):  # an OSError like those of files, but the reader's doing
        raise error
    print("hessabs: " + printable(" ".join(str(error).split())), file=sys.stderr)
    return 2
