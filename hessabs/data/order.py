"""The order of the examples, and where a stream stands in it.

The order of an epoch depends on (seed, epoch, number of examples) alone, so two integers, a ``Position``,
are all that is needed to continue a run at the very next micro-batch.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from hessabs.checks import require
from hessabs.data.augment import example_bits

_LOOKED_AT = 2**31 - 3  # the "epoch" whose order draws the examples that are looked at


class Position(NamedTuple):
    """Where a stream stands. An epoch has just ended where ``index`` is back at 0."""

    epoch: int  # of the next micro-batch, from 0
    # Micro-batches already taken from this epoch; hides tuple.index, which a position has no use for.
    index: int  # type: ignore[assignment]


Reader: TypeAlias = Callable[[int], tuple[dict[str, np.ndarray], Position]]
"""``read(count) -> (the next count micro-batches as one batch, position after it)``."""


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Return the order in which an epoch visits the examples.

    It sorts the raw output of Philox seeded with ``(seed, epoch)``. NumPy guarantees that output, unlike that
    of ``Generator.permutation``, to stay the same in later versions.

    Args:
        seed, epoch, num_examples: Each at least 0.

    Returns:
        A permutation of ``0..num_examples-1``, int64 (num_examples,).

    Raises:
        ValueError: One of them is negative.

    Example:
        >>> epoch_order(seed=0, epoch=0, num_examples=6), epoch_order(seed=0, epoch=1, num_examples=6)
        (array([0, 3, 5, 1, 2, 4]), array([3, 4, 2, 1, 5, 0]))
    """
    require("be at least 0", seed=seed, epoch=epoch, num_examples=num_examples)
    bits = np.random.Philox(np.random.SeedSequence([int(seed), int(epoch)])).random_raw(num_examples)
    order = np.argsort(bits)  # twice as fast as a stable sort, and the same unless two numbers are equal
    ranked = bits[order]
    if (ranked[1:] == ranked[:-1]).any():
        order = np.argsort(bits, kind="stable")
    return order.astype(np.int64, copy=False)


def micro_batches_per_epoch(num_examples: int, size: int, keep_remainder: bool = False) -> int:
    """Return the number of micro-batches in an epoch: ``floor(N / size)``, or ``ceil`` if kept.

    Args:
        num_examples: The number of examples.
        size: The number of examples in a micro-batch.
        keep_remainder: Whether an incomplete last micro-batch counts.

    Returns:
        The number of micro-batches, at least 1.

    Raises:
        ValueError: ``size`` is below 1 or above ``num_examples``.

    Example:
        >>> micro_batches_per_epoch(50_000, 128), micro_batches_per_epoch(50_000, 128, True)
        (390, 391)
    """
    if not 1 <= size <= num_examples:
        raise ValueError(f"`size` must lie in [1, the number of examples={num_examples}], got {size}.")
    return -(-num_examples // size) if keep_remainder else num_examples // size


def step_through(
    take: Callable[[int, int], dict[str, np.ndarray]], per_epoch: int, position: Position, replays: int = 1
) -> Reader:
    """Make a reader: ``take(number, count)`` returns the micro-batches from ``number`` on as one batch; they
    are counted from the first epoch on, and all lie in one epoch.
    """
    here = Position(*map(int, position))
    if here.epoch < 0 or not 0 <= here.index < per_epoch:
        raise ValueError(
            f"`position` must have epoch >= 0 and index in [0, {per_epoch}), the micro-batches of an epoch, "
            f"got {here}."
        )
    require("be at least 1", replays=replays)

    def read(count: int) -> tuple[dict[str, np.ndarray], Position]:
        nonlocal here
        left = per_epoch - here.index
        if replays > 1 and count > 1:
            raise ValueError(f"`count` must be 1 with replays={replays}, got {count}.")
        if not 1 <= count <= left:
            raise ValueError(f"`count` must lie in [1, micro-batches left in the epoch={left}], got {count}.")
        batch = take((here.epoch * per_epoch + here.index) // replays, count)
        here = Position(here.epoch + 1, 0) if count == left else Position(here.epoch, here.index + count)
        return batch, here

    return read


class Rows(NamedTuple):
    """Some examples of an epoch."""

    epoch: int
    places: np.ndarray  # (rows,), int64: in the order of the epoch, which they may pass beyond
    examples: np.ndarray  # (rows,), int64: the examples there
    weight: np.ndarray  # (rows,), float32: 0 beyond the end of the epoch
    bits: np.ndarray  # (rows,), uint64: 64 random bits of each example, if they are drawn


def make_rows(
    seed: int,
    num_examples: int,
    size: int,
    per_epoch: int,
    own_rows: Callable[[int], np.ndarray] | None,
    *,
    bits: bool,
) -> Callable[[int, int], Rows]:
    """Make ``rows(number, count)``: what ``count`` micro-batches hold, from the ``number``-th of the run on."""
    orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def order_of(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        entry = orders.get(epoch)
        if entry is None:
            drawn = example_bits(seed, epoch, num_examples) if bits else np.zeros(num_examples, np.uint64)
            entry = orders[epoch] = epoch_order(seed, epoch, num_examples), drawn
            for old in [e for e in list(orders) if e < epoch - 1]:  # two epochs are in use where one ends
                orders.pop(old, None)
        return entry

    def rows(number: int, count: int) -> Rows:
        epoch, index = divmod(number, per_epoch)
        order, drawn = order_of(epoch)
        places = np.arange(count * size) if own_rows is None else own_rows(count * size)
        places = index * size + places
        examples = order[places % num_examples]
        return Rows(epoch, places, examples, (places < num_examples).astype(np.float32), drawn[examples])

    return rows


def sample_places(number: int, num_examples: int) -> np.ndarray:
    """Choose so many of the examples of a set to look at, the same ones each time; 0 or too many: all of them.

    They are drawn, for a set may be sorted by class.

    >>> sample_places(3, 1000), sample_places(0, 3)
    (array([534, 600, 882]), array([0, 1, 2]))
    """
    if not 0 < number < num_examples:
        return np.arange(num_examples)
    return np.sort(epoch_order(0, _LOOKED_AT, num_examples)[:number])
