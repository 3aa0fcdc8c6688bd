"""What the processes of a run tell each other beside gradients: numbers, files that process 0 reads, arrays.

Process 0 alone touches the folder of a run, so the others need not see that folder. What it reads, and what it
fails at, reaches all of them: none is left waiting for one that has given up. All of these functions must be
called by all processes, in the same order; with one process they cost nothing.
"""

import json
import math
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
_ERRORS = {kind.__name__: kind for kind in (FloatingPointError, OSError, ValueError, RuntimeError)}
_SECONDS_BETWEEN_POLLS = 1.0


def is_first() -> bool:
    """Tell whether this process writes the files of a run and speaks to the user."""
    return jax.process_index() == 0


def gather(numbers: Sequence[float]) -> np.ndarray:
    """Collect a few numbers of each process, as float32 of shape (processes, numbers)."""
    return np.asarray(multihost_utils.process_allgather(np.asarray(numbers, np.float32)[None], tiled=True))


def on_first(act: Callable[[], T]) -> T:
    """Let process 0 do something with files, and all have what it returns: something that JSON can hold.

    What ``act`` raises, the other processes raise as the nearest of FloatingPointError, OSError, ValueError and
    RuntimeError, with the same message.
    """
    if jax.process_count() == 1:
        return act()
    told: dict[str, Any] = {}
    error = None
    if is_first():
        try:
            told = {"value": act()}
        except Exception as caught:  # the others must hear of it, whatever it is
            error = caught
            kinds = [name for name, kind in _ERRORS.items() if isinstance(caught, kind)]
            told = {"error": (kinds or ["RuntimeError"])[0], "message": str(caught)}
    content = json.dumps(told).encode()
    size = int(_bytes_of_first(np.frombuffer(np.int64(len(content)).tobytes(), np.uint8)).view(np.int64)[0])
    room = np.zeros(1 << math.ceil(math.log2(size)), np.uint8)  # few sizes: each is a program
    if is_first():
        room[:size] = np.frombuffer(content, np.uint8)
    told = json.loads(_bytes_of_first(room)[:size].tobytes())
    if error is not None:
        raise error
    if "error" in told:
        raise _ERRORS[told["error"]](told["message"])
    value: T = told["value"]
    return value


def tree_of_first(tree: T) -> T:
    """Give all processes the arrays of process 0, bit by bit; the trees differ in nothing but numbers."""
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, tree))
    content = _bytes_of_first(np.frombuffer(b"".join(leaf.tobytes() for leaf in leaves), np.uint8))
    parts = np.split(content, np.cumsum([leaf.nbytes for leaf in leaves])[:-1])
    told = [
        np.frombuffer(part.tobytes(), leaf.dtype).reshape(leaf.shape).copy()
        for leaf, part in zip(leaves, parts, strict=True)
    ]
    whole: T = jax.tree.unflatten(structure, told)
    return whole


def to_host(leaves: Sequence[Any]) -> list[np.ndarray]:
    """Copy arrays to the host, with the parts that other processes hold, complete when the call returns."""
    whole = [
        leaf
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        else multihost_utils.process_allgather(leaf, tiled=True)  # one by one: each is whole on every device
        for leaf in leaves
    ]
    return [np.array(leaf) for leaf in jax.device_get(whole)]  # copies: the buffers may be donated


def _bytes_of_first(content: np.ndarray) -> np.ndarray:
    # As integers: a sum with the zeros of the others would turn -0.0 into 0.0.
    return np.asarray(multihost_utils.broadcast_one_to_all(content))


def agree(what: str, tree: Any) -> None:
    """Raise RuntimeError unless all processes hold the same numbers and arrays, on the host."""
    if jax.process_count() == 1:
        return
    checksum = 0
    for leaf in jax.tree.leaves(tree):
        checksum = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), checksum)
    checksums = np.asarray(multihost_utils.process_allgather(np.uint32(checksum))).reshape(-1)
    others = np.flatnonzero(checksums != checksums[0]).tolist()
    if others:
        raise RuntimeError(
            f"The processes do not agree on {what}: {others} differ from process 0. Start all of them with the "
            "same flags, the same data and the same versions."
        )


class Poll:
    """A question to all processes, about once a second: when to save, though each has a clock of its own.

    A collective at every step would cost more than a small step does. So the processes count steps, and agree
    each time after how many they ask again, from how long the last ones took.
    """

    def __init__(self) -> None:
        self._every = self._left = 1
        self._since = time.perf_counter()

    def ask(self, due: bool, signum: int | None) -> tuple[bool, int | None]:
        """Say, once a step, whether to save, as the clock of process 0 has it, and the signal that any of them
        got; (False, None) between questions.
        """
        self._left -= 1
        if self._left:
            return False, None
        now = time.perf_counter()
        answers = gather([due, signum or 0, now - self._since])
        self._since = now
        self._every = self._left = next_number(self._every, float(answers[:, 2].max()))
        return bool(answers[0, 0]), int(answers[:, 1].max()) or None


def next_number(steps: int, seconds: float) -> int:
    """Choose after how many steps to ask again: those of a second, at most twice as many as the last time.

    Example:
      >>> next_number(8, 0.1), next_number(8, 0.8), next_number(8, 60.0)
      (16, 10, 1)
    """
    return max(1, min(2 * steps, int(steps * _SECONDS_BETWEEN_POLLS / max(seconds, 1e-6))))
