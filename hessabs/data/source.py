"""Examples with random access."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np


class Source(Protocol):
    """Examples by their numbers."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Return examples, stacked: a dict of pytrees of arrays with a leading axis."""


class Arrays:
    """A source of arrays in memory."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.arrays)[0])

    def take(self, indices: np.ndarray) -> dict[str, Any]:
        """Return examples, stacked."""
        return jax.tree.map(lambda x: np.take(x, indices, axis=0), self.arrays)


def as_source(x: Any) -> Source:
    """Make a source of arrays."""
    return (
        x
        if hasattr(x, "take") and not isinstance(x, np.ndarray)
        else Arrays(x if isinstance(x, Mapping) else {"example": x})
    )
