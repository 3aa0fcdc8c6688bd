"""Flags from configs: one field, one flag; what cannot be used ends in one line."""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

_KINDS = {"comma separated list of strings": "N,N,...", "bool": "true|false"}


class _Number(flags.ArgumentParser[float]):
    """A float, or a fraction such as 8/255. A class, as absl wants it."""

    def parse(self, argument: str | float) -> float:
        from hessabs.training.fields import number

        return number(argument) if isinstance(argument, str) else float(argument)

    def flag_type(self) -> str:
        return "float"


def config_flags(*config_types: Any) -> flags.FlagValues:
    """Define a flag for each field of some configs, apart from absl's global flags.

    Args:
      *config_types: NamedTuples whose fields are ``Annotated`` with their help.

    Returns:
      Flags that are not parsed yet.
    """
    from hessabs.training.fields import field_help, field_types

    values = flags.FlagValues()
    helps = {name: text for each in config_types for name, text in field_help(each).items()}
    types = {name: kind for each in config_types for name, kind in field_types(each).items()}
    for name, default in ((n, d) for each in config_types for n, d in each._field_defaults.items()):
        if types[name] is bool:
            flags.DEFINE_bool(name, default, helps[name], flag_values=values)
        elif types[name] is int:
            flags.DEFINE_integer(name, default, helps[name], flag_values=values)
        elif types[name] is float:
            define_number(name, default, helps[name], values)
        elif types[name] is tuple:
            flags.DEFINE_list(name, [str(item) for item in default], helps[name], flag_values=values)
        else:
            flags.DEFINE_string(name, default, helps[name], flag_values=values)
    return values


def define_number(name: str, default: float | None, text: str, values: flags.FlagValues) -> None:
    """Define a flag that takes a number or a fraction of two, such as 8/255.

    Args:
      name: Of the flag.
      default: What it is where it is not given.
      text: Its help.
      values: Where to define it.
    """
    flags.DEFINE(
        _Number(), name, default, text, flag_values=values, serializer=flags.ArgumentSerializer[float]()
    )


def given(config_type: Any, values: flags.FlagValues) -> set[str]:
    """List the fields of a config that were typed, those that were given their default too.

    Args:
      config_type: A NamedTuple whose fields are flags.
      values: The flags, parsed.

    Returns:
      Names of fields.
    """
    return {name for name in config_type._fields if values[name].present}


def read_config(config_type: Any, values: flags.FlagValues) -> Any:
    """Read a config from parsed flags.

    Args:
      config_type: A NamedTuple whose fields are flags.
      values: The flags, parsed.

    Returns:
      The config.

    Raises:
      ValueError: If a list of epochs is none.
    """
    fields: dict[str, Any] = {name: values[name].value for name in config_type._fields}
    for name, value in fields.items():
        if isinstance(value, list):
            try:
                fields[name] = tuple(int(epoch) for epoch in value if epoch.strip())
            except ValueError:
                raise ValueError(
                    f"`{name}` must be whole numbers separated by commas, got {','.join(value)!r}."
                ) from None
    return config_type(**fields)


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
            kind = _KINDS.get(flag.flag_type(), flag.flag_type())
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
    if isinstance(default, list):
        return ",".join(default)
    return str(default).lower() if isinstance(default, bool) else str(default)


def say(text: object) -> None:
    """Tell the user something in one line on standard error.

    Args:
      text: What it is.
    """
    print("hessabs: " + " ".join(str(text).split()), file=sys.stderr)


def refuse(error: object) -> int:
    """Say in one line on standard error what cannot be used.

    Args:
      error: What was wrong, what was got and what to do.

    Returns:
      The exit status, 2.

    Raises:
      BrokenPipeError: If that is what the error is.
    """
    if isinstance(error, BrokenPipeError):  # an OSError like those of files, but the reader's doing
        raise error
    say(error)
    return 2
