"""How a run reads its data: from memory, or from disk through grain; with which augmentation."""

from collections.abc import Callable

import jax
import numpy as np

from hessabs.data import Column, Position, Reader, encoded_reader, reader
from hessabs.training.setup import Run

_START = Position(0, 0)


def make_reader(run: Run, position: Position = _START) -> Reader:
    """Make the reader of the micro-batches of a run.

    Args:
      run: What ``set_up`` made.
      position: Where to start.

    Returns:
      ``read(count) -> (batch, position after it)``.
    """
    config, images = run.config, run.dataset.train["image"]
    replays = config.free_replays if config.robust == "free" else 1
    if isinstance(images, Column):
        several = jax.process_count() > 1
        read = encoded_reader(
            images.records,
            run.micro_batch_size,
            seed=config.seed,
            position=position,
            keep_remainder=config.keep_remainder,
            replays=replays,
            augmentation=config.augment,
            num_workers=config.data_workers,
            own_rows=run.own_rows if several else None,
        )
        return read if run.own_rows is None or several else _select(read, run.own_rows)
    return reader(
        run.dataset.train,
        run.micro_batch_size,
        seed=config.seed,
        position=position,
        keep_remainder=config.keep_remainder,
        replays=replays,
        augmentation=config.augment,
        own_rows=run.own_rows,
        gather=run.gather,
    )


def _select(read: Reader, own_rows: Callable[[int], np.ndarray]) -> Reader:
    def read_own(count: int) -> tuple[dict[str, np.ndarray], Position]:
        batch, position = read(count)
        rows = own_rows(len(batch["weight"]))
        return {name: array[rows] for name, array in batch.items()}, position

    return read_own
