"""The fields of a config as flags need them: what each holds, what its help says, how a number is read."""

import types
from typing import Any, get_args, get_origin, get_type_hints


def field_types(config_type: Any) -> dict[str, type]:
    """List the value type of each field of a config: str, int, float, bool or tuple.

    Args:
      config_type: A NamedTuple whose fields are ``Annotated``.

    Returns:
      Field name to type, in the order of the fields; ``X | None`` counts as X.

    Example:
      >>> from hessabs.training import Config
      >>> field_types(Config)["max_batch_size"]
      <class 'int'>
    """
    result = {}
    for name, hint in get_type_hints(config_type).items():
        if isinstance(hint, types.UnionType):
            hint = next(option for option in get_args(hint) if option is not type(None))
        result[name] = get_origin(hint) or hint
    return result


def number(text: str) -> float:
    """Read a number, or a fraction of two.

    Args:
      text: Such as ``0.03`` or ``8/255``.

    Returns:
      The number.

    Raises:
      ValueError: If it is neither.

    Example:
      >>> number("8/255") == 8 / 255, number("1e-3")
      (True, 0.001)
    """
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"a number or a fraction such as 8/255 is wanted, got {text!r}.") from None


def field_help(config_type: Any) -> dict[str, str]:
    """List the description of each field of a config.

    Args:
      config_type: A NamedTuple whose fields are ``Annotated``.

    Returns:
      Field name to description.

    Example:
      >>> from hessabs.training import Config
      >>> field_help(Config)["lr_decay"]
      'factor of each decay, in (0, 1]'
    """
    hints = get_type_hints(config_type, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}
