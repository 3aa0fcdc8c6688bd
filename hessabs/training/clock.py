"""Where the seconds of an epoch went; compilation is kept apart from all else."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from hessabs import compiling


class Clock:
    """Seconds by name, each epoch anew; from ``seconds`` on, what ``save`` returned in another process.

    Example:
      >>> clock = Clock()
      >>> with clock.measure("data"):
      ...     pass
      >>> sorted(clock.end_epoch())
      ['compile', 'data', 'eval', 'hessian', 'step']
    """

    def __init__(self, seconds: Mapping[str, float] | None = None) -> None:
        self._seconds = {name: (seconds or {}).get(name, 0.0) for name in ("data", "eval", "hessian")}
        self._epoch_start = time.perf_counter() - (seconds or {}).get("epoch", 0.0)
        self._compiled = compiling.seconds() - (seconds or {}).get("compile", 0.0)

    def save(self) -> dict[str, float]:
        """Return the seconds of this epoch so far, by name, "epoch" being all of them."""
        return {
            **self._seconds,
            "compile": compiling.seconds() - self._compiled,
            "epoch": time.perf_counter() - self._epoch_start,
        }

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a name, but for those of compilation."""
        start = time.perf_counter() - compiling.seconds()
        yield
        self._seconds[name] += time.perf_counter() - compiling.seconds() - start

    def end_epoch(self) -> dict[str, float]:
        """Return the seconds by name, "step" being those that no other name took, and start anew."""
        saved = self.save()
        step = saved.pop("epoch") - sum(saved.values())
        seconds = {**saved, "step": step}
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        self._epoch_start += step + sum(saved.values())
        self._compiled += saved["compile"]
        return seconds
