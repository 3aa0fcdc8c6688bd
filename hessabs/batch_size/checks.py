"""Batches and times of growth that rules refuse, in one line with what was got."""

import operator
from collections.abc import Sequence

import numpy as np

from hessabs.checks import require


def require_events(**events: Sequence[int]) -> tuple[int, ...]:
    """Return points in time as Python ints, or raise ``ValueError`` unless they are positive and ascend."""
    [(name, points)] = events.items()
    require("be positive counts of examples that ascend", **{name: tuple(points)})
    return tuple(map(operator.index, points))


def require_sizes(initial: int, maximum: int) -> None:
    """Raise ``ValueError`` unless ``initial`` lies in [1, maximum], and ``maximum`` within int32."""
    for name, size in {"initial": initial, "maximum": maximum}.items():
        if not isinstance(size, (int, np.integer)):
            raise ValueError(f"`{name}` must be a whole number of examples, got {size!r}.")
    if not 1 <= initial <= maximum:
        raise ValueError(f"`initial` must lie in [1, maximum={maximum}], got {initial}.")
    if maximum >= 2**31:
        raise ValueError(f"`maximum` must be below 2**31 examples per update, got {maximum}.")
