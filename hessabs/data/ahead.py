"""The rows of each batch that this process reads from a source on disk: read ahead, and nothing besides.

Which rows of a batch belong to a process may depend on how many micro-batches are read at once (with batch norm
each device has micro-batches of its own, once there are enough). So each example is a task of its own, ordered
as soon as it is likely to be needed; what turns out not to be is called off.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
import numpy as np

from hessabs.data.order import Rows
from hessabs.data.source import Source

_THREADS = 4


def read_ahead(
    source: Source, rows_of: Callable[[int, int], Rows], crops: bool, num_workers: int, per_epoch: int
) -> Callable[[int, int], dict[str, Any]]:
    """Make ``take(number, count)``, which reads the rows of so many micro-batches by worker processes, or by
    threads if there are none of these; images are cropped at random if ``crops``.
    """
    pool: Executor | None = None
    ordered: dict[tuple[int, int], Future[dict[str, Any]]] = {}
    after: dict[int, int] = {}  # how many were read at once after so many
    last = 0

    def order(rows: Rows) -> list[tuple[int, int]]:
        nonlocal pool
        if pool is None:  # the workers start with the first batch, not before
            pool = _workers(source, num_workers) if num_workers else ThreadPoolExecutor(_THREADS)
            weakref.finalize(take, pool.shutdown, wait=False, cancel_futures=True)
        keys = [(rows.epoch, place) for place in rows.places.tolist()]
        for i, key in enumerate(keys):
            if key not in ordered:
                arguments = [rows.examples[i : i + 1], *([rows.bits[i : i + 1]] if crops else [])]
                ordered[key] = pool.submit(_read, None if num_workers else source, *arguments)
        return keys

    def take(number: int, count: int) -> dict[str, Any]:
        try:
            return take_next(number, count)
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process that reads the data has ended. Each imports the main script anew: what trains there "
                'must stand under `if __name__ == "__main__":`. Or leave `num_workers` at 0 (threads).'
            ) from error

    def take_next(number: int, count: int) -> dict[str, Any]:
        nonlocal last
        after[last], last = count, count
        now = order(rows_of(number, count))
        follows = number + count
        coming = order(rows_of(follows, min(after.get(count, count), per_epoch - follows % per_epoch)))
        for key in ordered.keys() - {*now, *coming}:
            # What has begun may still be of use, unless its batch is over.
            if ordered[key].cancel() or key <= max(now):
                del ordered[key]
        try:
            parts = [ordered[key].result() for key in now]
        finally:  # where one fails, who asks again has them read again
            for key in now:
                del ordered[key]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)

    return take


def _workers(source: Source, number: int) -> ProcessPoolExecutor:
    try:
        pickle.dumps(source)
    except Exception as e:
        raise ValueError(
            f"With `data_workers` the source is sent to other processes, which it does not bear ({e}): define "
            "its functions at the top of a module, or leave `data_workers` at 0 (threads read ahead)."
        ) from e
    # Forks of a process that runs JAX may wait for ever.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(number, mp_context=context, initializer=_open, initargs=(source,))


_OPENED: list[Source] = []  # of a worker process, to which the source is sent once


def _open(source: Source) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked for the worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _OPENED[:] = [source]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read(source: Source | None, *arguments: np.ndarray) -> dict[str, Any]:
    source = _OPENED[0] if source is None else source
    return source.take(*arguments)
