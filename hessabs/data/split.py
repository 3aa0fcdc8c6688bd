"""A validation split: training examples set aside for choosing, so that the test set is for reporting alone."""

from typing import Any

import numpy as np

from hessabs.data.order import epoch_order
from hessabs.data.source import Source, as_source, subset

_HELD_OUT = 2**31 - 2  # the "epoch" whose order draws the examples that are held out


def hold_out(source: Any, number: int) -> tuple[Source, Source]:
    """Hold training examples out, the same ones whatever the seed of a run.

    Args:
        source: What ``as_source`` takes.
        number: How many to hold out; 0 leaves the source as it is.

    Returns:
        (the source without them, they); both keep the order of the source.

    Raises:
        ValueError: ``number`` is negative or leaves no example to train on.

    Example:
        >>> rest, held_out = hold_out({"label": np.arange(5)}, 2)
        >>> sorted([*rest["label"].tolist(), *held_out["label"].tolist()]), len(held_out)
        ([0, 1, 2, 3, 4], 2)
    """
    source = as_source(source)
    available = len(source)
    if not 0 <= number < available:
        raise ValueError(
            f"`validation_examples` must lie in [0, {available - 1}], for there are {available} training "
            f"examples, got {number}."
        )
    held = np.zeros(available, bool)
    held[epoch_order(0, _HELD_OUT, available)[:number]] = True
    rest = subset(source, np.flatnonzero(~held)) if number else source
    return rest, subset(source, np.flatnonzero(held))
