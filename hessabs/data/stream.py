"""An endless stream of micro-batches of arrays in memory, whose position can be saved.

Every batch has exactly ``size`` examples: shapes are static and nothing recompiles.

A batch is ``{**{name: array[size, ...]}, "weight": float32[size]}``; the weight is 0 for an example
that only fills the batch up, and 1 otherwise. Images stay uint8 in 0..255 here; the training step
divides by 255 on the device.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hessabs.data.augment import example_bits, shifts
from hessabs.data.gather import Gather, gather_here, one_by_one
from hessabs.data.order import Position, Reader, epoch_order, micro_batches_per_epoch, step_through

_START = Position(0, 0)
_BLOCK = 2048  # examples that are gathered at once: a short micro-batch costs little more than its slice


def micro_batches(
    arrays: Mapping[str, np.ndarray],
    size: int,
    *,
    seed: int,
    position: Position = _START,
    keep_remainder: bool = False,
    replays: int = 1,
) -> Iterator[tuple[dict[str, np.ndarray], Position]]:
    """Stream shuffled micro-batches without end, each with the position after it.

    Starting from a saved position gives exactly the rest of the sequence. An incomplete last
    micro-batch of an epoch is dropped, as in the authors' code. With ``keep_remainder`` it is
    filled up with the first examples of the same epoch, at weight 0; note that batch normalisation
    does not know of weights.

    Args:
        arrays: Arrays of shape (N, ...), ``{"image": ..., "label": ...}``.
        size: The number of examples in a micro-batch, at most N.
        seed: The seed of the run, at least 0.
        position: Where to start.
        keep_remainder: Keep an incomplete last micro-batch.
        replays: How many times in a row each micro-batch comes. An epoch of the position keeps its
            number of micro-batches, so the order of the examples moves on ``replays`` times slower.

    Returns:
        An endless iterator over ``(batch, position after it)``; ``batch`` has the names of
        ``arrays``, each of shape (size, ...) and of its own dtype, and ``"weight"``, float32
        (size,).

    Raises:
        ValueError: ``size`` is below 1 or above N, ``position``, ``seed`` or ``replays`` is out of
            range, or the arrays differ in N or hold the name ``"weight"``. Raised at the call, not at
            the first batch.

    Example:
        >>> arrays = {"label": np.arange(5)}
        >>> stream = micro_batches(arrays, 2, seed=0)
        >>> batch, position = next(stream)
        >>> batch["label"].shape, batch["weight"], position
        ((2,), array([1., 1.], dtype=float32), Position(epoch=0, index=1))
        >>> second, _ = next(stream)
        >>> again, _ = next(micro_batches(arrays, 2, seed=0, position=position))
        >>> bool((second["label"] == again["label"]).all())
        True
    """
    read = reader(arrays, size, seed=seed, position=position, keep_remainder=keep_remainder, replays=replays)
    return iter(lambda: read(1), None)  # read(1) is never None: without end


def reader(
    arrays: Mapping[str, np.ndarray],
    size: int,
    *,
    seed: int,
    position: Position = _START,
    keep_remainder: bool = False,
    replays: int = 1,
    augmentation: str = "none",
    own_rows: Callable[[int], np.ndarray] | None = None,
    gather: Gather | None = None,
) -> Reader:
    """Read the stream of ``micro_batches`` in steps of one or several micro-batches.

    The order of the examples and the unit of the position, a micro-batch of ``size``, do not depend on how
    many are read at once.

    Args:
        arrays: As for ``micro_batches``.
        size: As for ``micro_batches``.
        seed: As for ``micro_batches``.
        position: As for ``micro_batches``.
        keep_remainder: As for ``micro_batches``.
        replays: As for ``micro_batches``; above 1, one micro-batch is read at once.
        augmentation: ``"crop_flip"`` adds ``"shift"``, int32 (size, 3), to a batch: what
            ``hessabs.data.augment.crop_flip`` applies. ``"none"`` adds nothing.
        own_rows: ``own_rows(n) -> places``: which examples of a batch of n this process reads, and in which
            order; None for all of them as they come.
        gather: How the examples are taken from the arrays, where these lie elsewhere too, such as in the
            memory of an accelerator; None takes them here.

    Returns:
        ``read(count) -> (batch, position after it)``, a batch of ``count * size`` examples. It raises
        ``ValueError`` if ``count`` is below 1 or above the number of micro-batches left in the epoch.

    Raises:
        ValueError: As ``micro_batches``, at the call.

    Example:
        >>> read = reader({"label": np.arange(7)}, 2, seed=0)
        >>> read(2)[1], read(1)[1]
        (Position(epoch=0, index=2), Position(epoch=1, index=0))
    """
    num_examples = _num_examples(arrays)
    per_epoch = micro_batches_per_epoch(num_examples, size, keep_remainder)
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")
    order_of = _epoch_orders(seed, num_examples, augmentation)

    def gathered(number: int, num_parts: int, part: int) -> list[dict[str, Any]]:
        epoch, place = divmod(number, per_epoch)
        order, bits = order_of(epoch)
        rows = None if own_rows is None else own_rows(num_parts * part)
        places, weight = _places(order, place * size, num_parts * part, rows)
        parts = (gather or gather_here(arrays))(places, weight, num_parts)
        if augmentation == "crop_flip":
            moves = np.split(shifts(bits[places]), num_parts)
            parts = [{**batch, "shift": move} for batch, move in zip(parts, moves, strict=True)]
        return parts

    def block(number: int) -> list[dict[str, Any]]:
        return gathered(number, min(max(1, _BLOCK // size), per_epoch - number % per_epoch), size)

    # An accelerator does not wait for what it gathers itself.
    one = one_by_one(block, in_advance=gather is None)

    def take(number: int, count: int) -> dict[str, Any]:
        if count == 1 and own_rows is None:
            return one(number)
        return gathered(number, 1, count * size)[0]

    return step_through(take, per_epoch, position, replays)


def _epoch_orders(
    seed: int, num_examples: int, augmentation: str
) -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    orders: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def order_of(epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in orders:
            bits = example_bits(seed, epoch, num_examples) if augmentation == "crop_flip" else np.zeros(0)
            orders[epoch] = epoch_order(seed, epoch, num_examples), bits
            for old in [e for e in list(orders) if e < epoch - 1]:  # two epochs are in use where one ends
                orders.pop(old, None)
        return orders[epoch]

    return order_of


def eval_batches(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield every example once, in order; the last batch is filled up at weight 0.

    Args:
        arrays: Arrays of shape (N, ...), ``{"image": ..., "label": ...}``.
        size: The number of examples in a batch; it may exceed N.

    Returns:
        An iterator over ``ceil(N / size)`` batches as those of ``micro_batches``.

    Raises:
        ValueError: ``size`` is below 1, there are no examples, or the arrays differ in N or hold
            the name ``"weight"``. Raised at the call, not at the first batch.

    Example:
        >>> [b["weight"].tolist() for b in eval_batches({"label": np.arange(3)}, 2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    num_examples = _num_examples(arrays)
    if size < 1:
        raise ValueError(f"`size` must be at least 1, got {size}.")
    if num_examples < 1:
        raise ValueError("`arrays` must hold at least one example, got none.")
    order, gather = np.arange(num_examples), gather_here(arrays)
    return (gather(*_places(order, start, size), 1)[0] for start in range(0, num_examples, size))


def _places(
    order: np.ndarray, start: int, size: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    picked = order[start : start + size]
    weight = np.ones(size, np.float32)
    if len(picked) < size:  # past the end: the first examples again, at weight 0
        weight[len(picked) :] = 0
        picked = order[np.arange(start, start + size) % len(order)]
    return (picked, weight) if rows is None else (picked[rows], weight[rows])


def _num_examples(arrays: Mapping[str, np.ndarray]) -> int:
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"All `arrays` must have the same leading size, got {sizes}.")
    if "weight" in sizes:
        raise ValueError("`arrays` must not hold 'weight': the stream makes the weights itself.")
    return next(iter(sizes.values()))
