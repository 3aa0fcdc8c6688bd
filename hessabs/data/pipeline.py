"""Micro-batches of a split that does not fit memory, decoded and augmented by grain in worker processes.

The stream is that of ``hessabs.data.reader``: the same order of examples, the same ``Position``, the same
batches whatever the number of workers. A micro-batch follows from its number alone, so a run resumes anywhere
without a state of grain's own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hessabs.data.ahead import Rows, decode_ahead
from hessabs.data.augment import example_bits, shifts
from hessabs.data.encoded import Records
from hessabs.data.order import Position, Reader, epoch_order, micro_batches_per_epoch, step_through

_START = Position(0, 0)
_NUMBER = 2**40  # micro-batches in the stream, which has no end
_AHEAD = 2  # micro-batches that each worker decodes in advance


@dataclasses.dataclass
class _MicroBatches:
    """Micro-batch by number, counted from the start of the run; what grain calls a random access source."""

    records: Records
    size: int
    seed: int
    keep_remainder: bool
    augmentation: str

    def __len__(self) -> int:
        return _NUMBER

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        rows = self.rows(int(number), np.arange(self.size))
        decoded = [
            self.records.decode(example, augmentation=self.augmentation, bits=bits)
            for example, bits in zip(rows.examples.tolist(), rows.bits.tolist(), strict=True)
        ]
        images, labels = zip(*decoded, strict=True)
        return self.batch(rows, np.stack(images), np.array(labels, np.int32))

    def rows(self, number: int, places: np.ndarray) -> Rows:
        """Say which examples lie at some places behind the start of a micro-batch."""
        num_examples = len(self.records.examples)
        per_epoch = micro_batches_per_epoch(num_examples, self.size, self.keep_remainder)
        epoch, index = divmod(number, per_epoch)
        order, bits = self._epoch(epoch)
        places = index * self.size + places
        examples = order[places % num_examples]
        return Rows(epoch, places, examples, bits[examples])

    def batch(self, rows: Rows, images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
        """Put the batch of some rows together."""
        weight = (rows.places < len(self.records.examples)).astype(np.float32)
        batch = {"image": images, "label": labels, "weight": weight}
        return {**batch, "shift": shifts(rows.bits)} if self.augmentation == "crop_flip" else batch

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        # Two epochs are in use at once where one ends: a thread must not take the other's away.
        cache: dict[int, Any] = self.__dict__.setdefault("_cache", {})
        entry: tuple[np.ndarray, np.ndarray] | None = cache.get(epoch)
        if entry is None:
            number = len(self.records.examples)
            entry = epoch_order(self.seed, epoch, number), example_bits(self.seed, epoch, number)
            cache[epoch] = entry
            for old in [e for e in list(cache) if e < epoch - 1]:
                cache.pop(old, None)
        return entry

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cache"}


def encoded_reader(
    records: Records,
    size: int,
    *,
    seed: int,
    position: Position = _START,
    keep_remainder: bool = False,
    replays: int = 1,
    augmentation: str = "none",
    num_workers: int = 0,
    own_rows: Callable[[int], np.ndarray] | None = None,
    device: Any = None,
) -> Reader:
    """Read shuffled micro-batches of a split on disk, ahead of their use.

    Args:
        records: The split.
        size: The number of examples in a micro-batch, over all processes.
        seed: The seed of the run, at least 0.
        position: Where to start.
        keep_remainder: Keep an incomplete last micro-batch of an epoch, filled up at weight 0.
        replays: How many times in a row each micro-batch comes.
        augmentation: One of ``AUGMENTATIONS``. ``"crop_flip"`` adds ``"shift"`` to a batch, which
            the training step applies.
        num_workers: Processes that decode; 0 for threads of this one.
        own_rows: ``own_rows(n) -> places``: which examples of a batch of n this one of several processes
            reads, and in which order: it decodes these alone. None for all of them as they come.
        device: A device or sharding to which micro-batches are sent ahead; None leaves them on the
            host, as ``own_rows`` does.

    Returns:
        ``read(count) -> (batch, position after it)``, as ``hessabs.data.reader`` returns it.

    Raises:
        ImportError: grain is missing.
        ValueError: As ``reader``.
    """
    per_epoch = micro_batches_per_epoch(len(records.examples), size, keep_remainder)
    source = _MicroBatches(records, size, seed, keep_remainder, augmentation)
    if own_rows is not None:
        return step_through(_take_own(source, own_rows, num_workers, per_epoch), per_epoch, position, replays)
    try:
        import grain
    except ImportError as e:
        raise ImportError(f"Sets on disk are read with grain ({e}): install the extra `hessabs[data]`.") from e

    start = (position.epoch * per_epoch + position.index) // replays
    options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
    stream: Any = grain.MapDataset.source(source)[start:].to_iter_dataset(options)
    if num_workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain asks absl's global flags, which nobody parsed: their defaults
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=_AHEAD)
        stream = stream.mp_prefetch(workers)
    if device is not None:
        stream = grain.experimental.device_put(
            stream, device, cpu_buffer_size=_AHEAD, device_buffer_size=_AHEAD
        )
    iterator: Any = None
    known = -1
    last: dict[str, Any] = {}

    def take(number: int, count: int) -> dict[str, Any]:
        nonlocal iterator, known, last
        if number == known:  # a replay
            return last
        if iterator is None:
            iterator = iter(stream)  # the workers start with the first batch, not before
        parts = [next(iterator) for _ in range(count)]
        known = number
        last = parts[0] if count == 1 else {k: _join([part[k] for part in parts]) for k in parts[0]}
        return last

    return step_through(take, per_epoch, position, replays)


def _take_own(
    source: _MicroBatches, own_rows: Callable[[int], np.ndarray], num_workers: int, per_epoch: int
) -> Callable[[int, int], dict[str, np.ndarray]]:
    def rows_of(number: int, count: int) -> Rows:
        return source.rows(number, own_rows(count * source.size))

    decode = decode_ahead(source.records, rows_of, source.augmentation, num_workers, per_epoch)
    known: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def take(number: int, count: int) -> dict[str, np.ndarray]:
        nonlocal known
        if known[0] != number:  # else a replay
            known = number, source.batch(rows_of(number, count), *decode(number, count))
        return known[1]

    return take


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import jax.numpy as jnp

    return jnp.concatenate(parts)
