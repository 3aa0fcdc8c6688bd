"""Examples taken from arrays in memory, several micro-batches at once, and ahead of their use."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

Gather: TypeAlias = Callable[[np.ndarray, np.ndarray, int], list[dict[str, Any]]]
"""``gather(places, weight, num_parts) -> batches``: the examples at these places of the arrays, with their
weights, as so many batches of equal size."""


def gather_here(arrays: Mapping[str, np.ndarray]) -> Gather:
    """Take examples from arrays of the host.

    Args:
        arrays: Arrays of shape (N, ...).

    Returns:
        A ``Gather`` whose batches are NumPy arrays, and ``"weight"``.

    Example:
        >>> gather = gather_here({"label": np.array([5, 6, 7])})
        >>> [batch["label"] for batch in gather(np.array([2, 0]), np.ones(2, np.float32), 2)]
        [array([7]), array([5])]
    """

    def gather(places: np.ndarray, weight: np.ndarray, num_parts: int) -> list[dict[str, Any]]:
        # take: twice as fast as indexing, and a short micro-batch of a small network waits for it
        batch = {name: np.take(array, places, axis=0) for name, array in arrays.items()}
        parts = {name: np.split(array, num_parts) for name, array in {**batch, "weight": weight}.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(num_parts)]

    return gather


def one_by_one(
    block: Callable[[int], list[dict[str, Any]]], *, in_advance: bool
) -> Callable[[int], dict[str, Any]]:
    """Hand out micro-batches one by one that are made several at once.

    Args:
        block: ``block(number) -> batches``: some micro-batches from that number on, at least one.
        in_advance: Whether a thread makes the next block meanwhile.

    Returns:
        ``one(number) -> batch``; numbers in order cost the least.

    Example:
        >>> one = one_by_one(lambda number: [{"first": number}, {"first": number}], in_advance=True)
        >>> one(0), one(1), one(2), one(7)
        ({'first': 0}, {'first': 0}, {'first': 2}, {'first': 7})
    """
    first, batches = 0, list[dict[str, Any]]()
    coming: tuple[int, Future[list[dict[str, Any]]]] | None = None
    thread = ThreadPoolExecutor(1, "hessabs-read")

    def one(number: int) -> dict[str, Any]:
        nonlocal first, batches, coming
        if not first <= number < first + len(batches):
            first = number
            batches = coming[1].result() if coming is not None and coming[0] == number else block(number)
            if in_advance:
                after = number + len(batches)
                coming = after, thread.submit(block, after)
        return batches[number - first]

    return one
