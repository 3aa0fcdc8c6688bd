"""The rows of each batch that one of several processes reads from disk: decoded ahead, and nothing besides.

Which rows of a batch belong to a process may depend on how many micro-batches are read at once (with batch norm
each device has micro-batches of its own, once there are enough). So each example is a task of its own, ordered
as soon as it is likely to be needed; what turns out not to be is called off.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from hessabs.data.encoded import Records

_THREADS = 4


class Rows(NamedTuple):
    """Some examples of an epoch."""

    epoch: int
    places: np.ndarray  # (rows,), int64: in the order of the epoch, which they may pass beyond
    examples: np.ndarray  # (rows,), int64: the examples there
    bits: np.ndarray  # (rows,), 64 random bits of each example


def decode_ahead(
    records: Records,
    rows_of: Callable[[int, int], Rows],
    augmentation: str,
    num_workers: int,
    per_epoch: int,
) -> Callable[[int, int], tuple[np.ndarray, np.ndarray]]:
    """Decode the rows of one process.

    Args:
        records: The split.
        rows_of: ``rows_of(number, count)``: the rows of this process of so many micro-batches.
        augmentation: As for ``Records.decode``.
        num_workers: Processes that decode; 0 for threads of this one.
        per_epoch: The number of micro-batches in an epoch.

    Returns:
        ``take(number, count) -> (images (rows, size, size, C), labels (rows,))``.
    """
    pool: Executor | None = None
    ordered: dict[tuple[int, int], Future[tuple[np.ndarray, int]]] = {}
    after: dict[int, int] = {}  # how many were read at once after so many
    last = 0

    def order(rows: Rows) -> list[tuple[int, int]]:
        nonlocal pool
        if pool is None:  # the workers start with the first batch, not before
            pool = _workers(records, num_workers) if num_workers else ThreadPoolExecutor(_THREADS)
        keys = [(rows.epoch, place) for place in rows.places.tolist()]
        for key, example, bits in zip(keys, rows.examples.tolist(), rows.bits.tolist(), strict=True):
            if key not in ordered:
                call: Callable[..., Any] = _decode if num_workers else records.decode
                ordered[key] = pool.submit(call, example, augmentation=augmentation, bits=bits)
        return keys

    def take(number: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal last
        after[last], last = count, count
        now = order(rows_of(number, count))
        follows = number + count
        coming = order(rows_of(follows, min(after.get(count, count), per_epoch - follows % per_epoch)))
        for key in ordered.keys() - {*now, *coming}:
            # What has begun may still be of use, unless its batch is over.
            if ordered[key].cancel() or key <= max(now):
                del ordered[key]
        decoded = [ordered[key].result() for key in now]
        for key in now:
            del ordered[key]
        return np.stack([image for image, _ in decoded]), np.array([label for _, label in decoded], np.int32)

    return take


def _workers(records: Records, number: int) -> ProcessPoolExecutor:
    # Forks of a process that runs JAX may wait for ever.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, mp_context=context, initializer=_open, initargs=(records,))


_OPENED: list[Records] = []  # of a worker process, to which the records are sent once


def _open(records: Records) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked for the worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _OPENED[:] = [records]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _decode(place: int, **options: Any) -> tuple[np.ndarray, int]:
    return _OPENED[0].decode(place, **options)
