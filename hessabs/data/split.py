"""A validation split: training examples set aside for choosing, so that the test set is for reporting alone."""

from typing import Any

import numpy as np

from hessabs.data.encoded import Column
from hessabs.data.order import epoch_order
from hessabs.data.sources import Dataset

_HELD_OUT = 2**31 - 2  # the "epoch" whose order draws the examples that are held out


def hold_out(dataset: Dataset, number: int) -> tuple[Dataset, dict[str, np.ndarray]]:
    """Hold training examples out, the same ones whatever the seed of a run.

    Args:
      dataset: The data set.
      number: How many to hold out; 0 leaves the data set as it is.

    Returns:
      (the data set without them, their arrays ``{"image", "label"}``); both keep the order of the training set.

    Raises:
      ValueError: If ``number`` is negative or leaves no example to train on.

    Example:
      >>> digits = Dataset("d", {"label": np.arange(5)}, {"label": np.arange(2)}, 5)
      >>> rest, held_out = hold_out(digits, 2)
      >>> sorted([*rest.train["label"].tolist(), *held_out["label"].tolist()]), len(held_out["label"])
      ([0, 1, 2, 3, 4], 2)
    """
    available = len(dataset.train["label"])
    if not 0 <= number < available:
        raise ValueError(
            f"`validation_examples` must lie in [0, {available - 1}], for {dataset.name} has {available} "
            f"training examples, got {number}."
        )
    held = np.zeros(available, bool)
    held[epoch_order(0, _HELD_OUT, available)[:number]] = True
    train = {name: _subset(array, ~held) for name, array in dataset.train.items()} if number else dataset.train
    return dataset._replace(train=train), {name: _subset(array, held) for name, array in dataset.train.items()}


def _subset(array: Any, mask: np.ndarray) -> Any:
    return array.subset(mask) if isinstance(array, Column) else array[mask]
