"""Runs in the terminal, while they train or later: curves, progress, last record, of their files alone."""

import contextlib
import itertools
import json
import math
import os
import pathlib
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hessabs.training import files

_PANELS = (
    ("batch_size", "batch size", "log"),
    ("lr", "learning rate", "log"),
    ("eigenvalue", "top Hessian eigenvalue", "log"),
    ("test_accuracy", "test accuracy (%)", "linear"),
)
_LOSS_PANEL = ("test_loss", "test loss (nats)", "linear")  # where no run classifies
_SECONDS_BETWEEN = 1.0
_NO_TERMINAL = 120  # columns, where nothing says how many there are
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " _.:-=+*#"
_NOT_SHOWN = ("epoch", "updates", "samples", "seconds_")  # of a last record: they stand elsewhere
_WIDEST = 4  # columns of an epoch
_RECENT = 5  # epochs that tell how long the next ones take


class Seen(NamedTuple):
    """What the folder of a run says at one moment."""

    name: str
    state: str  # running, finished, diverged or stopped
    note: str  # what more there is to say of that, or to do
    epochs: int | None  # of the whole run; None if nothing says so
    records: list[dict[str, Any]]
    seconds: float  # that its epochs took; of a finished run, all of it

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1] if self.records else {}


def watch(folders: Sequence[pathlib.Path], *, follow: bool = True, console: Console | None = None) -> None:
    """Show runs, and on a terminal go on showing them until none is running.

    Args:
      folders: The folders of the runs; of several, one table and the curves of their accuracy on one scale.
      follow: Go on while one is running.
      console: Where to show them; standard output by default.

    Raises:
      KeyboardInterrupt: At Ctrl-C, when the terminal is as it was.
      OSError: A folder is missing, holds no run, or cannot be read.
      ValueError: A file of a run is damaged.
    """
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = _NO_TERMINAL
    runs = [look(folder) for folder in folders]
    if not (follow and console.is_terminal and any(run.state == "running" for run in runs)):
        console.print(page(runs, console))
        return
    with _interruptible(), Live(page(runs, console), console=console, auto_refresh=False) as live:
        while any(run.state == "running" for run in runs):
            time.sleep(_SECONDS_BETWEEN)
            runs = [look(folder) for folder in folders]
            live.update(page(runs, console), refresh=True)


def look(folder: pathlib.Path) -> Seen:
    """Read what the folder of a run says now; a last line that is not whole yet is left out."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder: name that of a run, which `hessabs train` has begun.")
    with files.usable("workdir", folder):
        # The lock first: a run that ends meanwhile is seen as running, and looked at again.
        owner = files.lock_owner(folder)
        summary, config = _object(folder / files.SUMMARY), _object(folder / files.CONFIG)
        diverged = _object(folder / files.DIVERGED)
        lines = _text(folder / files.METRICS)
    if owner is None and summary is None and config is None and lines is None:
        raise FileNotFoundError(f"{folder} holds no run: name the folder that `hessabs train` writes into.")
    records = _records(lines or "", folder / files.METRICS)
    epochs = (config or {}).get("config", summary or {}).get("epochs")
    seconds = sum(map(_seconds, records))
    if owner is not None:
        state, note = "running", owner
    elif diverged is not None:
        state, note = "diverged", str(diverged.get("diverged"))
    elif summary is not None and not _goes_on(summary, epochs):
        state, note = "finished", ""
        if "diverged" in summary:
            state, note = "diverged", str(summary["diverged"])
        seconds = _number(summary.get("seconds")) or seconds
    else:
        state, note = "stopped", "before its end: `hessabs train --resume` with the same flags goes on"
    return Seen(str(folder), state, note, epochs if isinstance(epochs, int) else None, records, seconds)


def _goes_on(summary: Mapping[str, Any], epochs: Any) -> bool:
    """Whether a finished run was begun again for more epochs: its summary is then that of the shorter one."""
    return isinstance(epochs, int) and (_number(summary.get("epochs")) or epochs) < epochs


def page(runs: Sequence[Seen], console: Console) -> RenderableType:
    """Lay one run out with all its curves, or several as a table with the curves of one number."""
    levels = _ASCII if console.options.ascii_only else _BLOCKS
    return _one(runs[0], console.width, levels) if len(runs) == 1 else _several(runs, console.width, levels)


def curve(
    values: Sequence[float | None], low: float, high: float, height: int = 1, levels: str = _BLOCKS
) -> str:
    """Draw values between two bounds as columns of so many lines; None leaves a gap.

    Example:
      >>> curve([1, 2, None, 8], 1, 8)
      '▁▂ █'
      >>> print(curve([1, 2, 3, 4], 1, 4, height=2))
        ▃█
      ▁▆██
    """
    steps = len(levels) - 1
    scale = (steps * height - 1) / (high - low) if high > low else 0.0
    tall = [0 if value is None else 1 + round((value - low) * scale) for value in values]
    rows = ([levels[min(max(each - steps * row, 0), steps)] for each in tall] for row in range(height))
    return "\n".join(map("".join, reversed(list(rows))))


def _one(run: Seen, width: int, levels: str) -> RenderableType:
    field, *_ = metric = _metric([run])
    table = _table("", f"epochs 1 to {len(run.records)}", right=("lowest", "highest", "last"))
    shown = [metric, *(panel for panel in _PANELS if panel[0] not in ("test_accuracy", "test_loss"))]
    for name, title, scale in shown:
        values, drawable = (_values(run.records, name, each) for each in ("linear", scale))
        known, positive = ([x for x in each if x is not None] for each in (values, drawable))
        if known:
            height = 4 if name == field else 1
            drawn = _draw(drawable, positive, scale, width - 64, levels, height) if positive else Text("")
            cells = (min(known), max(known), known[-1])
            table.add_row(title, drawn, *(_shown(cell) for cell in cells))
    rest = {
        name: value
        for name, value in run.last.items()
        if not name.startswith(_NOT_SHOWN) and name not in {panel[0] for panel in shown}
    }
    parts: list[RenderableType] = [_progress(run, width)]
    if run.records:
        text = ", ".join(f"{name} {_shown(value)}" for name, value in rest.items())
        parts += ["", table, "", Text(_printable(f"last record: {text or '-'}"))]
    return Group(*parts)


def _progress(run: Seen, width: int) -> RenderableType:
    done = len(run.records)
    head = Text.assemble((run.name, "bold"), _printable(f": {run.state}{f' ({run.note})' if run.note else ''}"))
    passed = _count(run.last.get("updates")), _count(run.last.get("samples")), _clock(run.seconds)
    line = "epoch {}/{}: {} updates, {} examples, {}".format(done, run.epochs or "?", *passed)
    if run.state == "running" and run.records and run.epochs:
        each = statistics.median(map(_seconds, run.records[-_RECENT:]))
        line += f", about {_clock(each * (run.epochs - done))} left"
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=run.epochs or max(done, 1), completed=done, width=max(min(width - len(line) - 2, 40), 10)
    )
    grid.add_row(bar, Text(line))
    return Group(head, grid)


def _several(runs: Sequence[Seen], width: int, levels: str) -> RenderableType:
    field, title, scale = _metric(runs)
    best = max if field == "test_accuracy" else min
    numbers = ("epoch", "updates", "batch", "lr", "eigenvalue", title, "best", "time")
    table = _table("run", "state", right=numbers)
    curves = {run.name: _values(run.records, field, scale) for run in runs}
    for run in runs:
        known = [value for value in curves[run.name] if value is not None]
        last = run.last
        table.add_row(
            Text(run.name),
            run.state,
            f"{len(run.records)}/{run.epochs or '?'}",
            _count(last.get("updates")),
            _count(last.get("batch_size")),
            *(_shown(_latest(run.records, name)) for name in ("lr", "eigenvalue", field)),
            _shown(best(known) if known else None),
            _clock(run.seconds),
        )
    known = [value for values in curves.values() for value in values if value is not None]
    if not known:
        return table
    longest = max(map(len, curves.values()))
    drawn = _table(title, f"{_shown(min(known))} to {_shown(max(known))}, epochs 1 to {longest}")
    for name, values in curves.items():
        padded = [*values, *[None] * (longest - len(values))]
        drawn.add_row(Text(name), _draw(padded, known, scale, width * 2 // 3, levels, 2))
    return Group(table, "", drawn)


def _table(*left: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for title in left:
        table.add_column(title, overflow="fold")
    for title in right:
        table.add_column(title, justify="right")
    return table


def _metric(runs: Sequence[Seen]) -> tuple[str, str, str]:
    """Choose the number that runs go by: the accuracy if each has one, else the loss."""
    begun = [run.last for run in runs if run.records]
    return _PANELS[-1] if all("test_accuracy" in last for last in begun) else _LOSS_PANEL


def _latest(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Find the last one there is: not every epoch measures an eigenvalue."""
    return next((x for x in reversed(_values(records, name, "linear")) if x is not None), None)


def _values(records: Sequence[Mapping[str, Any]], name: str, scale: str) -> list[float | None]:
    numbers = (_number(record.get(name)) for record in records)
    return [None if x is None or (scale == "log" and x <= 0) else x for x in numbers]


def _draw(
    values: Sequence[float | None], known: Sequence[float], scale: str, width: int, levels: str, height: int
) -> Text:
    """Draw values on the scale of the known ones, a few columns for each or the last of each column."""
    along: Callable[[float], float] = math.log if scale == "log" else float
    room = max(width, 10)
    values = [value for value in values for _ in range(max(min(room // len(values), _WIDEST), 1))]
    columns = min(len(values), room)
    edges = [len(values) * column // columns for column in range(columns + 1)]
    parts = ([x for x in values[a:b] if x is not None] for a, b in itertools.pairwise(edges))
    heights = [along(part[-1]) if part else None for part in parts]
    return Text(curve(heights, along(min(known)), along(max(known)), height, levels), style="green")


def _records(text: str, path: pathlib.Path) -> list[dict[str, Any]]:
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        lines.pop()  # it is being written, or a kill cut it off, and --resume writes it anew
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(
                f"Line {number} of {path} is damaged: remove it to see the rest, or let `hessabs train "
                "--resume` write the file anew from its checkpoint."
            )
        records.append(record)
    return records


def _object(path: pathlib.Path) -> dict[str, Any] | None:
    text = _text(path)
    try:
        read = None if text is None else json.loads(text)
    except ValueError:
        read = text
    if read is not None and not isinstance(read, dict):
        raise ValueError(f"{path} is damaged: remove it to see the curves of the run.")
    return read


def _text(path: pathlib.Path) -> str | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(errors="replace")
    return None


def _seconds(record: Mapping[str, Any]) -> float:
    return sum(_number(value) or 0.0 for name, value in record.items() if name.startswith("seconds_"))


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _shown(value: Any) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:.4g}" if isinstance(number, float) else f"{number:,}"


def _printable(text: str) -> str:
    """Leave out what would steer a terminal: a folder may come from somebody else."""
    return "".join(filter(str.isprintable, text))


def _count(value: Any) -> str:
    number = _number(value)
    return "0" if number is None else f"{number:,.0f}"


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt while the block runs, so that it can give the cursor back."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
