"""Micro-batches of a split that does not fit memory, decoded and augmented by grain in worker processes.

The stream is that of ``hessabs.data.reader``: the same order of examples, the same ``Position``, the same
batches whatever the number of workers. A micro-batch follows from its number alone, so a run resumes anywhere
without a state of grain's own.
"""

import dataclasses
from typing import Any

import numpy as np

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
    share: tuple[int, int]  # this process, of so many

    def __len__(self) -> int:
        return _NUMBER

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        num_examples = len(self.records.examples)
        per_epoch = micro_batches_per_epoch(num_examples, self.size, self.keep_remainder)
        epoch, index = divmod(int(number), per_epoch)
        order, bits = self._epoch(epoch)
        process, count = self.share
        mine = self.size // count
        places = index * self.size + process * mine + np.arange(mine)
        chosen = order[places % num_examples]
        rows = [
            self.records.decode(i, augmentation=self.augmentation, bits=int(bits[i])) for i in chosen.tolist()
        ]
        batch = {
            "image": np.stack([image for image, _ in rows]),
            "label": np.array([label for _, label in rows], np.int32),
            "weight": (places < num_examples).astype(np.float32),
        }
        if self.augmentation == "crop_flip":
            batch["shift"] = shifts(bits[chosen])
        return batch

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
    share: tuple[int, int] = (0, 1),
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
        share: (the number of this process, the number of processes): a process reads its part of
            the examples of each micro-batch, in order.
        device: A device or sharding to which micro-batches are sent ahead; None leaves them on the
            host.

    Returns:
        ``read(count) -> (batch, position after it)``, as ``hessabs.data.reader`` returns it.

    Raises:
        ImportError: grain is missing.
        ValueError: ``size`` is not a multiple of the number of processes, or as ``reader``.
    """
    try:
        import grain
    except ImportError as e:
        raise ImportError(f"Sets on disk are read with grain ({e}): install the extra `hessabs[data]`.") from e

    per_epoch = micro_batches_per_epoch(len(records.examples), size, keep_remainder)
    if size % share[1]:
        raise ValueError(f"`size` must be a multiple of the {share[1]} processes, got {size}.")
    source = _MicroBatches(records, size, seed, keep_remainder, augmentation, share)
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


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import jax.numpy as jnp

    return jnp.concatenate(parts)
