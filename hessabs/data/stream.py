"""An endless stream of micro-batches of a source, whose position can be saved.

Every batch has exactly ``size`` examples: shapes are static and nothing recompiles. It is what ``source.take``
returns and ``"weight"``, float32 (size,): 0 for an example that only fills the batch up, and 1 otherwise.
Images stay uint8 in 0..255 here; the training step divides by 255 on the device.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax
import numpy as np

from hessabs.checks import require
from hessabs.data.ahead import read_ahead
from hessabs.data.augment import AUGMENTATIONS, shifts
from hessabs.data.order import Position, Reader, make_rows, micro_batches_per_epoch, step_through
from hessabs.data.source import Source, as_source, can_crop, in_memory

_START = Position(0, 0)
_BLOCK = 2048  # examples that are gathered at once: a short micro-batch costs little more than its slice

Gather: TypeAlias = Callable[[np.ndarray, np.ndarray, int], list[dict[str, Any]]]
"""``gather(places, weight, num_parts) -> batches``: the examples at these places of a source, with their
weights, as so many batches of equal size."""


def micro_batches(
    source: Any,
    size: int,
    *,
    seed: int,
    position: Position = _START,
    keep_remainder: bool = False,
    replays: int = 1,
) -> Iterator[tuple[dict[str, Any], Position]]:
    """Stream shuffled micro-batches without end, each with the position after it.

    Args:
        source: As for ``reader``, and so are the others.
        size: As for ``reader``.
        seed: As for ``reader``.
        position: As for ``reader``.
        keep_remainder: As for ``reader``.
        replays: As for ``reader``.

    Returns:
        An endless iterator over ``(batch, position after it)``.

    Raises:
        ValueError: As ``reader``, at the call, not at the first batch.

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
    read = reader(source, size, seed=seed, position=position, keep_remainder=keep_remainder, replays=replays)
    return iter(lambda: read(1), None)  # read(1) is never None: without end


def reader(
    source: Any,
    size: int,
    *,
    seed: int,
    position: Position = _START,
    keep_remainder: bool = False,
    replays: int = 1,
    augmentation: str = "none",
    own_rows: Callable[[int], np.ndarray] | None = None,
    gather: Gather | None = None,
    num_workers: int = 0,
) -> Reader:
    """Read a stream of shuffled micro-batches in steps of one or several.

    Starting from a saved position gives exactly the rest of the sequence. The order of the examples and the
    unit of the position, a micro-batch of ``size``, do not depend on how many are read at once, nor on who
    reads them: arrays are gathered in blocks by a thread, other examples are read ahead one at a time.

    Args:
        source: N examples: what ``as_source`` takes.
        size: The number of examples in a micro-batch, over all processes, at most N.
        seed: The seed of the run, at least 0.
        position: Where to start.
        keep_remainder: Fill an incomplete last micro-batch up with the first examples of the same epoch, at
            weight 0, of which batch norm knows nothing; else it is dropped, as in the authors' code.
        replays: How many times in a row each micro-batch comes; above 1, one micro-batch is read at once. An
            epoch of the position keeps its number of micro-batches: the order moves on so much slower.
        augmentation: ``"crop_flip"`` adds ``"shift"``, int32 (size, 3), to a batch: what
            ``hessabs.data.crop_flip`` applies to its ``"image"``. ``"resized_crop"`` crops images that are
            decoded as they are read (``load(..., image_size=...)``). ``"none"`` does nothing.
        own_rows: ``own_rows(n) -> places``: which examples of a batch of n this process reads, and in which
            order; None for all of them as they come.
        gather: Takes the examples, where they lie elsewhere too, such as on an accelerator; None: here.
        num_workers: Processes that read a source that is not in memory; 0 for threads of this one. They import
            the main script anew, which therefore trains under ``if __name__ == "__main__":``.

    Returns:
        ``read(count) -> (batch, position after it)``, a batch of ``count * size`` examples; ``count`` lies in
        1..the number of micro-batches left in the epoch.

    Raises:
        ValueError: A number is out of range, the source is none that ``as_source`` takes, or its examples
            cannot be augmented so. Raised at the call.

    Example:
        >>> read = reader({"label": np.arange(7)}, 2, seed=0)
        >>> read(2)[1], read(1)[1]
        (Position(epoch=0, index=2), Position(epoch=1, index=0))
    """
    source = as_source(source)
    per_epoch = micro_batches_per_epoch(len(source), size, keep_remainder)
    require("be at least 0", seed=seed)
    _check_augmentation(source, augmentation)
    rows_of = make_rows(seed, len(source), size, per_epoch, own_rows, bits=augmentation != "none")

    if gather is None and not in_memory(source):
        read = read_ahead(source, rows_of, augmentation == "resized_crop", num_workers, per_epoch)
        known: tuple[int, dict[str, Any]] = (-1, {})

        def take_lazily(number: int, count: int) -> dict[str, Any]:
            nonlocal known
            if known[0] != number:  # else a replay
                rows = rows_of(number, count)
                moves = {"shift": shifts(rows.bits)} if augmentation == "crop_flip" else {}
                known = number, {**read(number, count), "weight": rows.weight, **moves}
            return known[1]

        return step_through(take_lazily, per_epoch, position, replays)

    gather_rows = gather or gather_here(source)

    def gathered(number: int, count: int, num_parts: int) -> list[dict[str, Any]]:
        rows = rows_of(number, count)
        batches = gather_rows(rows.examples, rows.weight, num_parts)
        if augmentation == "crop_flip":
            moves = np.split(shifts(rows.bits), num_parts)
            batches = [{**batch, "shift": move} for batch, move in zip(batches, moves, strict=True)]
        return batches

    def block(number: int) -> list[dict[str, Any]]:
        count = min(max(1, _BLOCK // size), per_epoch - number % per_epoch)
        return gathered(number, count, count)

    # An accelerator does not wait for what it gathers itself.
    one = one_by_one(block, in_advance=gather is None)

    def take(number: int, count: int) -> dict[str, Any]:
        return one(number) if count == 1 and own_rows is None else gathered(number, count, 1)[0]

    return step_through(take, per_epoch, position, replays)


def eval_batches(source: Any, size: int) -> Iterator[dict[str, Any]]:
    """Yield every example once, in order; the last batch is filled up at weight 0.

    Args:
        source: N examples: what ``as_source`` takes.
        size: The number of examples in a batch, at least 1; it may exceed N.

    Returns:
        An iterator over ``ceil(N / size)`` batches as those of ``micro_batches``.

    Raises:
        ValueError: As ``as_source``, or ``size`` is below 1. Raised at the call.

    Example:
        >>> [b["weight"].tolist() for b in eval_batches({"label": np.arange(3)}, 2)]
        [[1.0, 1.0], [1.0, 0.0]]
    """
    source = as_source(source)
    require("be at least 1", size=size)
    if len(source) < 1:
        raise ValueError("A source must hold at least one example, got none.")
    gather, number = gather_here(source), len(source)

    def batch(start: int) -> dict[str, Any]:
        places = np.arange(start, start + size)
        return gather(places % number, (places < number).astype(np.float32), 1)[0]

    return map(batch, range(0, number, size))


def gather_here(source: Source) -> Gather:
    """Make a ``Gather`` whose batches are NumPy arrays, and ``"weight"``."""

    def gather(places: np.ndarray, weight: np.ndarray, num_parts: int) -> list[dict[str, Any]]:
        leaves, structure = jax.tree.flatten({**source.take(places), "weight": weight})
        parts = zip(*(np.split(leaf, num_parts) for leaf in leaves), strict=True)
        return [jax.tree.unflatten(structure, part) for part in parts]

    return gather


def one_by_one(
    block: Callable[[int], list[dict[str, Any]]], *, in_advance: bool
) -> Callable[[int], dict[str, Any]]:
    """Hand out micro-batches one by one that are made several at once, ``block(number)`` from that number on;
    ``in_advance``, a thread makes the next block meanwhile.
    """
    first, batches = 0, list[dict[str, Any]]()
    coming: tuple[int, Future[list[dict[str, Any]]]] | None = None
    thread = ThreadPoolExecutor(1, "hessabs-read")

    def one(number: int) -> dict[str, Any]:
        nonlocal first, batches, coming
        if not first <= number < first + len(batches):
            ready, coming = coming, None  # forgotten where it fails: who asks again is to get this block
            batches = ready[1].result() if ready is not None and ready[0] == number else block(number)
            first = number
            if in_advance:
                after = number + len(batches)
                coming = after, thread.submit(block, after)
        return batches[number - first]

    return one


def _check_augmentation(source: Source, augmentation: str) -> None:
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"`augmentation` must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}.")
    if augmentation == "resized_crop" and not can_crop(source):
        raise ValueError("`resized_crop` crops images as they are decoded: load them with `image_size`.")
    if augmentation == "crop_flip":
        names = source.take(np.zeros(1, np.int64))
        if "image" not in names or np.ndim(names["image"]) != 4:
            shapes = jax.tree.map(np.shape, names)
            raise ValueError(f"`crop_flip` needs images, 'image' of shape (N, H, W, C), got {shapes}.")
