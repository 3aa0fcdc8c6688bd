"""The progress of a run: how long it will take, then a bar on a terminal or a line for each epoch in a log."""

import sys
import time
from typing import Any, Self

_SECONDS_BETWEEN_LINES = 600.0  # in an epoch that takes longer
# An estimate is of so many seconds after the first examples, which wait for what is compiled: the fewer, if
# they are a hundredth of the run by then.
_SECONDS_OF_AN_ESTIMATE = (5.0, 30.0)
_LONG = 60.0  # seconds
_TIMES = "{percentage:3.0f}% [{elapsed}<{remaining}"
_SHORT = (_TIMES + ", {rate_fmt}]", _TIMES + "]", "{percentage:3.0f}%")
_SHORT_OPEN = ("{n_fmt} [{elapsed}, {rate_fmt}]", "{n_fmt} [{elapsed}]", "{n_fmt}")  # of no known total


class Progress:
    """The ``total`` examples of a run, some ``done``, with how many there are in a second and the time left.

    A ``total`` of None is one that nobody can tell, of what ends when it is good enough: no time left is told.
    Else what will take more than a minute is told so after some seconds. Where the output is no terminal it
    ``logs`` lines; of several processes one does.
    """

    def __init__(self, total: int | None, done: int = 0, *, logs: bool = True) -> None:
        from tqdm import tqdm

        look: Any = {"unit": "ex", "unit_scale": True, "dynamic_ncols": True}
        self._bar = tqdm(total=total, initial=done, file=sys.stderr, disable=None, **look)
        self._logs = logs and self._bar.disable
        self._total, self._done = total, done
        self._started = self._said = time.monotonic()
        self._first: tuple[int, float] | None = None  # examples and time when the first are done
        self._estimated = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def show(self, samples: int, *, milestone: bool = False, **values: Any) -> None:
        """Move the bar to the examples so far and show values beside it; a log has a line of a ``milestone``.

        Those come first that a narrow terminal keeps longest; None shows as a dash.
        """
        text = {
            name: "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
            for name, value in values.items()
        }
        self._estimate(samples)
        if self._logs and (milestone or time.monotonic() - self._said > _SECONDS_BETWEEN_LINES):
            self._say(samples, text)
        if not self._bar.disable:
            self._bar.bar_format, kept = fitting(self._bar.format_dict, text)
            self._bar.set_postfix(kept, refresh=False)
        self._bar.update(samples - self._bar.n)

    def _estimate(self, samples: int) -> None:
        if self._total is None:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = (samples, now) if samples > self._done else None
        elif not self._estimated and samples > self._first[0]:
            seconds, done = now - self._first[1], samples - self._first[0]
            if seconds < _SECONDS_OF_AN_ESTIMATE[100 * done < self._total]:
                return
            self._estimated = True
            left = seconds / done * (self._total - samples)
            if left > _LONG and (self._logs or not self._bar.disable):
                self._bar.write(f"hessabs: about {self._bar.format_interval(left)} to go.", file=sys.stderr)

    def _say(self, samples: int, text: dict[str, str]) -> None:
        self._said = time.monotonic()
        done, seconds = samples - self._done, self._said - self._started
        fields = ", ".join(f"{name} {value}" for name, value in text.items())
        passed = self._bar.format_interval(seconds)
        if self._total is None:
            line = f"{samples} examples: {fields} [{passed}]"
        else:
            left = self._bar.format_interval(seconds * (self._total - samples) / done) if done else "?"
            line = f"{100 * samples / self._total:.0f}%: {fields} [{passed}<{left}]"
        print(line, file=sys.stderr, flush=True)


def fitting(meter: dict[str, Any], text: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """Choose what a line of a terminal holds: whole fields, the first ones, and nothing that is cut.

    ``meter`` is tqdm's ``format_dict``; returns its ``bar_format``, None for its own, and the fields that fit.

    Example:
      >>> meter = {"n": 5, "total": 10, "elapsed": 1.0, "ncols": 60}
      >>> fitting(meter, {"epoch": "1/2", "loss": "0.51", "updates": "1200"})[1]
      {'epoch': '1/2', 'loss': '0.51'}
    """
    from tqdm import tqdm

    columns = meter["ncols"]
    if columns is None:
        return None, text
    # What changes is longer at another time than now: a rate, and the time left.
    room = columns - 4
    names = list(text)
    for count in range(len(names), -1, -1):
        kept = {name: text[name] for name in names[:count]}
        postfix = ", ".join(f"{name}={value}" for name, value in kept.items())
        line = tqdm.format_meter(**{**meter, "ncols": 0, "bar_format": None, "postfix": postfix})
        if len(line) <= room:
            return None, kept
    forms = _SHORT if meter["total"] else _SHORT_OPEN
    for form in forms:
        if len(tqdm.format_meter(**{**meter, "ncols": None, "bar_format": form, "postfix": ""})) <= columns - 1:
            return form, {}
    return forms[-1], {}
