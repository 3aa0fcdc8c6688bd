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

from hessabs.terminal import printable
from hessabs.training import files
from hessabs.training.look.table import GAP, Column, lay_out, least_width, make_column

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
_CHART = 10  # columns that a curve or a bar has at least
_SPARE = ("time", "best", "eigenvalue", "lr", "updates", "batch", "epoch")  # of a table: the first goes first
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
    shown = [metric, *(panel for panel in _PANELS if panel[0] not in ("test_accuracy", "test_loss"))]
    known = {name: [x for x in _values(run.records, name, "linear") if x is not None] for name, *_ in shown}
    shown = [panel for panel in shown if known[panel[0]]]
    numbers = [
        make_column(title, [_shown(of(known[name])) for name, *_ in shown], justify="right")
        for title, of in (("lowest", min), ("highest", max), ("last", lambda values: values[-1]))
    ]
    titles, chart = make_column("", [title for _, title, _ in shown], wraps=True), max(width - 64, _CHART)
    while len(numbers) > 1 and least_width([titles, *numbers]) + chart + GAP > width:
        numbers.pop(0)
    chart = min(chart, max(width - least_width([titles, *numbers]) - GAP, 1))
    curves = []
    for name, _, scale in shown:
        drawable = _values(run.records, name, scale)
        positive = [x for x in drawable if x is not None]
        height = 4 if name == field else 1
        curves.append(_draw(drawable, positive, scale, chart, levels, height) if positive else Text(""))
    drawn = Column(f"epochs 1 to {len(run.records)}", curves, chart, chart)
    rest = {
        name: value
        for name, value in run.last.items()
        if not name.startswith(_NOT_SHOWN) and name not in {panel[0] for panel in shown}
    }
    parts: list[RenderableType] = [_progress(run, width)]
    if run.records:
        text = ", ".join(f"{name} {_shown(value)}" for name, value in rest.items())
        table = lay_out([titles, drawn, *numbers], width)
        parts += ["", table, "", Text(printable(f"last record: {text or '-'}"))]
    return Group(*parts)


def _progress(run: Seen, width: int) -> RenderableType:
    done = len(run.records)
    note = f" ({run.note})" if run.note else ""
    head = Text.assemble((printable(run.name), "bold"), printable(f": {run.state}{note}"))
    passed = _count(run.last.get("updates")), _count(run.last.get("samples")), _clock(run.seconds)
    line = "epoch {}/{}: {} updates, {} examples, {}".format(done, run.epochs or "?", *passed)
    if run.state == "running" and run.records and run.epochs:
        each = statistics.median(map(_seconds, run.records[-_RECENT:]))
        line += f", about {_clock(each * (run.epochs - done))} left"
    beside = width - len(line) - GAP
    room = min(beside if beside >= _CHART else width, 40)
    bar = ProgressBar(total=run.epochs or max(done, 1), completed=done, width=room)
    grid = Table.grid(padding=(0, GAP))
    for row in [(bar, Text(line))] if beside >= _CHART else [(bar,), (Text(line),)]:
        grid.add_row(*row)
    return Group(head, grid)


def _several(runs: Sequence[Seen], width: int, levels: str) -> RenderableType:
    field, title, scale = _metric(runs)
    best = max if field == "test_accuracy" else min
    curves = [_values(run.records, field, scale) for run in runs]
    latest = {
        name: [_shown(_latest(run.records, name)) for run in runs] for name in ("lr", "eigenvalue", field)
    }
    found = ([value for value in values if value is not None] for values in curves)
    cells = {
        "epoch": [f"{len(run.records)}/{run.epochs or '?'}" for run in runs],
        "updates": [_count(run.last.get("updates")) for run in runs],
        "batch": [_count(run.last.get("batch_size")) for run in runs],
        "lr": latest["lr"],
        "eigenvalue": latest["eigenvalue"],
        title: latest[field],
        "best": [_shown(best(values) if values else None) for values in found],
        "time": [_clock(run.seconds) for run in runs],
    }
    columns = {name: make_column(name, numbers, justify="right") for name, numbers in cells.items()}
    names = _names("run", runs, width)
    first = [names, make_column("state", [run.state for run in runs])]
    for spare in _SPARE:
        if least_width([*first, *columns.values()]) > width:
            del columns[spare]
    table = lay_out([*first, *columns.values()], width)
    known = [value for values in curves for value in values if value is not None]
    if not known:
        return table
    longest = max(map(len, curves))
    names = _names(title, runs, width)
    chart = max(min(width * 2 // 3, width - min(names.natural, width // 2) - GAP), _CHART)
    drawn = [
        _draw([*values, *[None] * (longest - len(values))], known, scale, chart, levels, 2) for values in curves
    ]
    span = f"{_shown(min(known))} to {_shown(max(known))}, epochs 1 to {longest}"
    return Group(table, "", lay_out([names, Column(span, drawn, chart, chart)], width))


def _names(title: str, runs: Sequence[Seen], width: int) -> Column:
    """Name the runs; a name may be a long path, and takes several lines where it is over half of one."""
    names = make_column(title, [printable(run.name) for run in runs])
    return names._replace(cells=[Text(str(cell)) for cell in names.cells], least=min(names.least, width // 2))


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
    room = max(width, 1)
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
