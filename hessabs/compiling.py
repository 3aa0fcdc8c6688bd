"""How long JAX has traced and compiled, so that a time can keep that apart from what is computed."""

import contextlib
import functools
import threading
import time
from collections import defaultdict
from collections.abc import Iterator

import jax

_EVENTS = "/jax/core/compile/"
_ALL = 0  # no thread has this number


class _Tally:
    """The length of a union of intervals, which come in the order of their ends."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._intervals: list[tuple[float, float]] = []

    def add(self, start: float, end: float) -> None:
        # A function that is traced inside another one has an interval of its own, inside the other's.
        while self._intervals and self._intervals[-1][1] > start:
            first, last = self._intervals.pop()
            self.seconds -= last - first
            start = min(start, first)
        self._intervals.append((start, end))
        self.seconds += end - start


def seconds(*, everywhere: bool = False) -> float:
    """Return how long JAX has traced and compiled in this thread since it was first asked, or in any thread.

    What the thread waited for in ``waiting`` counts. Differences say what lies between two questions.
    """
    return _listen()[_ALL if everywhere else threading.get_ident()].seconds


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Count the block, in which this thread waits for another one to compile, as compilation."""
    start = time.perf_counter()
    yield
    _listen()[threading.get_ident()].add(start, time.perf_counter())


@functools.cache
def _listen() -> defaultdict[int, _Tally]:
    tallies: defaultdict[int, _Tally] = defaultdict(_Tally)
    lock = threading.Lock()

    def note(event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith(_EVENTS):
            end = time.perf_counter()
            with lock:
                tallies[_ALL].add(end - duration_secs, end)
                tallies[threading.get_ident()].add(end - duration_secs, end)

    jax.monitoring.register_event_duration_secs_listener(note)
    return tallies
