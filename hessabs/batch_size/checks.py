"""What parameters must be: an error in one line, with what was got."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from hessabs.batch_size.counting import NEVER

_RANGES: dict[str, Callable[[Any], bool]] = {
    "be at least 0": lambda value: 0 <= value < math.inf,
    "be at least 0 seconds": lambda value: 0 <= value < math.inf,
    "be at least 0 examples": lambda value: 0 <= value <= NEVER,
    "be at least 1": lambda value: 1 <= value < math.inf,
    "be at least 1 example": lambda value: 1 <= value < NEVER,
    "be above 0": lambda value: 0 < value < math.inf,
    "be positive and finite": lambda value: 0 < value < math.inf,
    "be above 1": lambda value: 1 < value < math.inf,
    "lie in (0, 1]": lambda value: 0 < value <= 1,
    "lie in [0, 1]": lambda value: 0 <= value <= 1,
    "be a power of two observations": lambda value: value >= 1 and not value & (value - 1),
    "be positive epochs in ascending order": lambda value: _ascend(value, math.inf),
    "be positive counts of examples that ascend": lambda value: _ascend(value, NEVER),
    "be linear, sqrt or none": lambda value: value in ("linear", "sqrt", "none"),
    "be drop, keep or fill": lambda value: value in ("drop", "keep", "fill"),
}


def require(what: str, **parameters: Any) -> None:
    """Raise ``ValueError`` unless parameters are what is said: ``require("be above 1", growth_factor=2.0)``."""
    for name, value in parameters.items():
        if not _RANGES[what](value):
            raise ValueError(f"`{name}` must {what}, got {value}.")


def require_events(**events: Sequence[int]) -> tuple[int, ...]:
    """Return points in time as Python ints, or raise ``ValueError`` unless they are positive and ascend."""
    [(name, points)] = events.items()
    require("be positive counts of examples that ascend", **{name: tuple(points)})
    return tuple(map(operator.index, points))


def require_sizes(initial: int, maximum: int) -> None:
    """Raise ``ValueError`` unless ``initial`` lies in [1, maximum], and ``maximum`` within int32."""
    if not 1 <= initial <= maximum:
        raise ValueError(f"`initial` must lie in [1, maximum={maximum}], got {initial}.")
    if maximum >= 2**31:
        raise ValueError(f"`maximum` must be below 2**31 examples per update, got {maximum}.")


def _ascend(points: Sequence[int], end: float) -> bool:
    return all(0 < point < end for point in points) and list(points) == sorted(set(points))
