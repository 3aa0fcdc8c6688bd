"""Where the seconds of an epoch went."""

import contextlib
import time
from collections.abc import Iterator, Mapping


class Clock:
    """Seconds by name, each epoch anew. A class, against the house rule: it is one thing that changes.

    Args:
      seconds: What ``save`` returned in another process, to go on from there.

    Example:
      >>> clock = Clock()
      >>> with clock.measure("data"):
      ...     pass
      >>> sorted(clock.end_epoch())
      ['data', 'eval', 'hessian', 'step']
    """

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._seconds = {name: (seconds or {}).get(name, 0.0) for name in ("data", "eval", "hessian")}
        self._epoch_start = time.perf_counter() - (seconds or {}).get("epoch", 0.0)

    def save(self) -> dict[str, float]:
        """Return the seconds of this epoch so far, by name, "epoch" being all of them."""
        return {**self._seconds, "epoch": time.perf_counter() - self._epoch_start}

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a name."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def end_epoch(self) -> dict[str, float]:
        """Return the seconds by name, "step" being those that no other name took, and start anew."""
        now = time.perf_counter()
        step = now - self._epoch_start - sum(self._seconds.values())
        seconds = {**self._seconds, "step": step}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._epoch_start = now
        return seconds
