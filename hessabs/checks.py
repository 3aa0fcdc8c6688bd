"""What every room asks of its parameters, in one line, with what was got."""

import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_type_hints

import jax
import numpy as np

NEVER = 2**60
"""The count of examples that stands for "never"; all others are below it."""

_NUMBERS: dict[str, Callable[[Any], bool]] = {
    "be at least 0": lambda x: 0 <= x < math.inf,
    "be at least 0 and finite": lambda x: 0 <= x < math.inf,
    "be at least 0 seconds": lambda x: 0 <= x < math.inf,
    "be at least 0 examples": lambda x: 0 <= x <= NEVER,
    "be at least 1": lambda x: 1 <= x < math.inf,
    "be a whole number of at least 0": lambda x: 0 <= x < math.inf and x == int(x),
    "be a whole number of at least 1": lambda x: 1 <= x < math.inf and x == int(x),
    "be at least 1 example": lambda x: 1 <= x < NEVER,
    "be above 1": lambda x: 1 < x < math.inf,
    "be positive and finite": lambda x: 0 < x < math.inf,
    "lie in (0, 1)": lambda x: 0 < x < 1,
    "lie in (0, 1]": lambda x: 0 < x <= 1,
    "lie in [0, 1)": lambda x: 0 <= x < 1,
    "lie in [0, 1]": lambda x: 0 <= x <= 1,
    "be a power of two observations": lambda x: x >= 1 and not x & (x - 1),
}
_TIMES: dict[str, Callable[[Any], bool]] = {
    "be positive epochs in ascending order": lambda points: _ascend(points, math.inf),
    "be positive counts of examples that ascend": lambda points: _ascend(points, NEVER),
}


def require(what: str, **parameters: Any) -> None:
    """Raise ``ValueError`` unless each parameter is a number, or times, and what is said.

    >>> require("be above 1", growth_factor=1.0)
    Traceback (most recent call last):
    ...
    ValueError: `growth_factor` must be above 1, got 1.0.
    """
    fits = _TIMES.get(what) or _NUMBERS[what]
    for name, value in parameters.items():
        if what in _NUMBERS:
            _check_number(name, value)
        if not fits(value):
            raise ValueError(f"`{name}` must {what}, got {value}.")


def number(what: str, **parameter: Any) -> float:
    """Return one parameter as a Python float, which takes the dtype of what it meets, or raise as ``require``.

    >>> import numpy as np
    >>> number("be above 1", growth_factor=np.float64(2.0))
    2.0
    """
    require(what, **parameter)
    [value] = parameter.values()
    return float(value)


def count(least: int = 1, **parameter: Any) -> int:
    """Return one parameter as a Python int, or raise unless it is a whole number of at least 1, or 0.

    >>> count(steps=10.0)
    10
    """
    require(f"be a whole number of at least {least}", **parameter)
    [value] = parameter.values()
    return int(value)


def require_ranges(settings: Any) -> None:
    """Check settings, a NamedTuple, whose ``Annotated`` fields may say what they must be after their help."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        for what in getattr(hint, "__metadata__", ())[1:] if value is not None else ():
            require(what, **{name: value})


def require_one_of(known: Sequence[Any], **parameters: Any) -> None:
    """Raise ``ValueError`` unless parameters are among the words that are known."""
    for name, value in parameters.items():
        if value not in known:
            raise ValueError(f"`{name}` must be one of {list(known)}, got {value!r}.")


def refuse_unread(given: Collection[str], read_with: Mapping[str, Sequence[str]], **chosen: Any) -> None:
    """Refuse a setting that was given and is read with other values of the one that is chosen.

    >>> refuse_unread({"lr_end", "seed"}, {"lr_end": ("cosine", "wsd")}, schedule="step")
    Traceback (most recent call last):
    ...
    ValueError: `lr_end` is read with schedule=cosine, wsd, and not with schedule=step; leave it out.
    """
    [(name, choice)] = chosen.items()
    choices = choice if isinstance(choice, tuple) else (choice,)
    for setting in sorted({*given} & {*read_with}):
        readers = read_with[setting]
        if not {*choices} & {*readers}:
            raise ValueError(
                f"`{setting}` is read with {name}={', '.join(readers)}, and not with {name}="
                f"{', '.join(map(str, choices))}; leave it out."
            )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"`{name}` must be known before tracing, got a traced value: give it outside of jit.")
    is_array = isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.ndim == 0
    if not is_array and not isinstance(value, numbers.Real):
        raise ValueError(f"`{name}` must be a number, got {value!r}.")


def _ascend(points: Sequence[int], end: float) -> bool:
    return all(0 < point < end for point in points) and list(points) == sorted(set(points))
