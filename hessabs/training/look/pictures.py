"""The pictures of runs: curves by epoch, what was tracked, accuracy under attack, and images that fell."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hessabs.attacks import Evaluation

CURVE_PANELS = (
    ("batch_size", "batch size", "log"),
    ("lr", "learning rate", "log"),
    ("eigenvalue", "top Hessian eigenvalue", "log"),
    ("test_accuracy", "test accuracy (%)", "linear"),
)
LOSS_PANEL = ("test_loss", "test loss (nats)", "linear")  # where no run classifies
TRACKED_PANELS = (
    (
        "largest Hessian eigenvalue",
        {"eigenvalue": "whole network", "last_layer_eigenvalue": "last layer's block"},
    ),
    ("norm of the total gradient", {"gradient_norm": "whole training set"}),
)
_DPI = 120
_TICKS = 9  # of a logarithmic axis, about
_WIDE = 20  # a wider range than this asks for a logarithmic axis


class Sheet(NamedTuple):
    """Images that an attack felled."""

    title: str  # which attack
    clean: np.ndarray  # (n, height, width, channels), in [0, 1]
    attacked: np.ndarray  # the same after the attack
    before: np.ndarray  # (n,), int: predicted labels
    after: np.ndarray  # (n,), int


def draw_curves(path: pathlib.Path | BinaryIO, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Draw batch size, learning rate, eigenvalue and accuracy by epoch, as in the slides, into a PNG file.

    The loss stands in for the accuracy where no run has one. ``runs``: name of a run to its records of
    ``metrics.jsonl``; several runs share the panels.
    """
    figure = _figure((10, 7))
    axes = figure.subplots(2, 2, sharex=True)
    panels = list(CURVE_PANELS)
    if not any("test_accuracy" in record for records in runs.values() for record in records):
        panels[-1] = LOSS_PANEL
    for axis, (field, title, scale) in zip(axes.flat, panels, strict=True):
        lines = {n: _points(records, field, positive=scale == "log") for n, records in runs.items()}
        decided = field in ("batch_size", "lr")  # it holds until the next decision
        _draw_lines(axis, lines, drawstyle="steps-mid" if decided else "default")
        if scale == "log" and axis.lines:
            _log_in_numbers(axis, [y for points in lines.values() for _, y in points], field == "batch_size")
        axis.set_title(title)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    if len(runs) > 1:
        axes.flat[0].legend()
    for records in runs.values() if len(runs) == 1 else ():
        _say_where_it_ends(axes.flat[2], records)
    figure.savefig(path, dpi=_DPI)


def _log_in_numbers(axis: Any, values: Sequence[float], are_sizes: bool) -> None:
    """Make an axis logarithmic whose ticks are numbers as one says them: the sizes there are, or 1, 2, 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(NullFormatter())
    if are_sizes:
        shown: list[int] = []
        apart = max(1.7, (max(values) / min(values)) ** (1 / _TICKS))
        for size in sorted({int(value) for value in values}, reverse=True):
            if not shown or shown[-1] >= apart * size:
                shown.append(size)
        axis.set_yticks(shown, [f"{size:,}" for size in shown])
        axis.minorticks_off()
        return
    if max(values) < 1.5 * min(values):  # nearly one number: a range around it, so that a tick is in it
        axis.set_ylim(min(values) / 2, max(values) * 2)
    low, high = axis.get_ylim()
    decades = np.log10(high / low)
    subs = (1, 2, 3, 4, 5, 7) if decades < 1 else (1, 2, 5) if decades < _TICKS / 3 else (1,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=_TICKS))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _say_where_it_ends(axis: Any, records: Sequence[Mapping[str, Any]]) -> None:
    """Say that no eigenvalue is measured any more where the batch is the largest one."""
    measured = [r["epoch"] for r in records if (r.get("eigenvalue") or 0) > 0]
    if not measured or measured[-1] == records[-1]["epoch"]:
        return
    later = {r["batch_size"] for r in records if r["epoch"] > measured[-1]}
    if later == {max(r["batch_size"] for r in records)}:
        axis.axvline(measured[-1], color="0.6", linestyle=":")
        axis.annotate(
            "largest batch:\nnot measured\nany more",
            (measured[-1], 0.97),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="0.4",
        )


def draw_tracked(path: pathlib.Path, records: list[dict[str, Any]], *, title: str = "") -> bool:
    """Draw what ``hessabs train --track`` recorded, a panel for each unit; False if there is nothing."""
    panels = []
    for label, fields in TRACKED_PANELS:
        lines = {name: _points(records, field, positive=True) for field, name in fields.items()}
        if any(lines.values()):
            panels.append((label, lines))
    if not panels:
        return False
    figure = _figure((6, 1 + 2.7 * len(panels)))
    figure.suptitle(title)
    for axis, (label, lines) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_lines(axis, lines)
        values = [value for points in lines.values() for _, value in points]
        wide = max(values) > _WIDE * min(values)
        axis.set(xlabel="epoch", ylabel=label, yscale="log" if wide else "linear")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    figure.savefig(path, dpi=_DPI)
    return True


def draw_accuracy(path: pathlib.Path, rows: Sequence[Evaluation], title: str) -> None:
    """Draw the accuracy against epsilon, a line for each attack, from the clean accuracy (the first row) on."""
    figure = _figure((7, 4.5))
    axis = figure.subplots()
    clean, *attacked = rows
    lines: dict[str, list[tuple[float, float]]] = {
        row.attack: [(0.0, 100 * clean.accuracy)] for row in attacked
    }
    for row in sorted(attacked, key=lambda row: row.epsilon):
        lines[row.attack].append((row.epsilon, 100 * row.accuracy))
    _draw_lines(axis, lines)
    axis.set(xlabel="epsilon", ylabel="accuracy (%)", ylim=(0, 100), title=title)
    axis.legend()
    figure.savefig(path, dpi=_DPI)


def draw_sheet(path: pathlib.Path, sheet: Sheet) -> None:
    """Draw clean images, perturbations (stretched to the range of grey) and results, a column an example."""
    number = len(sheet.clean)
    figure = _figure((1.6 * number + 0.8, 5.6))
    axes = figure.subplots(3, number, squeeze=False)
    delta = sheet.attacked - sheet.clean
    largest = float(np.abs(delta).max())
    middle = 0.5 + delta / (2 * largest) if largest > 0 else 0.5 + delta
    for column in range(number):
        shown = (
            (sheet.clean, f"predicted {sheet.before[column]}"),
            (middle, f"size {np.abs(delta[column]).max():.3g}"),
            (sheet.attacked, f"predicted {sheet.after[column]}"),
        )
        for axis, (images, text) in zip(axes[:, column], shown, strict=True):
            image = np.clip(images[column], 0, 1)
            axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(text, fontsize=9)
            axis.set_axis_off()
    figure.suptitle(sheet.title)
    figure.savefig(path, dpi=_DPI)


def _figure(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _points(records: list[dict[str, Any]], field: str, *, positive: bool) -> list[tuple[float, float]]:
    known = [(r["epoch"], r[field]) for r in records if r.get(field) is not None]
    return [(x, y) for x, y in known if y > 0] if positive else known


def _draw_lines(
    axis: Any, lines: Mapping[str, Sequence[tuple[float, float]]], drawstyle: str = "default"
) -> None:
    for place, (name, points) in enumerate(lines.items()):
        if points:
            look: dict[str, Any] = {"marker": "." if len(points) < 40 else "", "drawstyle": drawstyle}
            axis.plot(*zip(*points, strict=True), color=f"C{place}", label=name, **look)
    axis.grid(alpha=0.3)
