"""The fields of a config as flags need them: what each holds, and what its help says."""

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
