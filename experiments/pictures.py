"""Pictures of a grid that follow the slides, drawn from what lies beside the runs.

``experiments/run.py`` draws them with the table; those of curvature appear where ``experiments/measure.py`` has
measured runs.
"""

import collections
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hessabs.training import metrics
from hessabs.training.reports.results import Finished, Group, group

CURVATURE = "curvature.json"


def draw(results: pathlib.Path, runs: Sequence[Finished]) -> list[str]:
    """Draw all pictures for which there is something to draw.

    Args:
      results: The folder of the grid, where they go.
      runs: Its finished runs.

    Returns:
      The names of the files.
    """
    groups = group(runs)
    tables = _by_method(groups)
    first = {g.name: g.runs[0] for g in groups}
    records = {
        name: metrics.read_lines(run.folder / metrics.METRICS)
        for name, run in first.items()
        if (run.folder / metrics.METRICS).exists()
    }
    measured = {name: records[0] for name, records in curvatures(groups).items()}
    tracked = {name: lines for name, lines in records.items() if lines and "gradient_norm" in lines[-1]}
    pictures: list[tuple[str, Any, Callable[[Any], Any]]] = [
        ("schedules.png", _one_column(records), _schedules),
        ("accuracy.png", tables if any(map(_is_a_line, tables.values())) else {}, _accuracy),
        ("tracked.png", tracked, _tracked),
        ("spectra.png", measured, _spectra),
        ("block.png", measured, _block),
        ("line.png", measured, _line),
        ("single.png", measured, _single),
    ]
    drawn = []
    for name, data, paint in pictures:
        if data:
            paint(data).savefig(results / name, dpi=90)
            drawn.append(name)
    return drawn


def curvatures(groups: Sequence[Group]) -> dict[str, list[dict[str, Any]]]:
    """Read what ``experiments/measure.py`` has measured: a record of each run with its seed, by group."""
    measured = {
        g.name: [
            {"seed": run.summary.get("seed", 0), **json.loads((run.folder / CURVATURE).read_text())}
            for run in g.runs
            if (run.folder / CURVATURE).exists()
        ]
        for g in groups
    }
    return {name: records for name, records in measured.items() if records}


def _figure(columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * columns + 1, 3.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _by_method(groups: Sequence[Group]) -> dict[str, list[tuple[int, Group]]]:
    """Sort groups named METHOD_COLUMN: method to (column, group), BL's smallest in every method."""
    tables: dict[str, list[tuple[int, Group]]] = {}
    for g in groups:
        method, _, column = g.name.partition(" @")[0].rpartition("_")
        if method and column.isdecimal():
            tables.setdefault(method, []).append((int(column), g))
    return {method: sorted(points, key=lambda point: point[0]) for method, points in tables.items()}


def _is_a_line(points: Sequence[tuple[int, Group]]) -> bool:
    return len({column for column, _ in points}) > 1  # runs of two commits are two groups in one column


def _one_column(records: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the runs of the column with the most methods, the largest of several; all runs if none is one."""
    columns = {name: name.partition(" @")[0].rpartition("_")[2] for name in records}
    count = collections.Counter(int(column) for column in columns.values() if column.isdecimal())
    if not count:
        return dict(records)
    chosen = max(count, key=lambda column: (count[column], column))
    return {name: lines for name, lines in records.items() if columns[name] == str(chosen)}


def _schedules(records: Mapping[str, Any]) -> Any:
    figure, axes = _figure(2)
    for axis, field, title in zip(axes, ("batch_size", "lr"), ("batch size", "learning rate"), strict=True):
        for name, lines in records.items():
            axis.plot([r["epoch"] for r in lines], [r[field] for r in lines], label=name)
        axis.set(yscale="log", xlabel="epoch", title=title)
    axes[0].legend(fontsize=7)
    return figure


def _accuracy(tables: Mapping[str, Any]) -> Any:
    from statistics import mean, stdev

    figure, axes = _figure(2)
    fields = (("test_accuracy", "test accuracy (%)"), ("pgd_accuracy", "accuracy under PGD (%)"))
    for axis, (field, title) in zip(axes, fields, strict=True):
        for method, points in tables.items():
            known = [(column, g.values(field)) for column, g in points if g.values(field)]
            spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in known]
            heights = [mean(values) for _, values in known]
            axis.errorbar([c for c, _ in known], heights, spread, marker=".", capsize=2, label=method)
        axis.set(xscale="log", xlabel="largest batch", title=title)
    axes[0].legend(fontsize=7)
    return figure


def _tracked(records: Mapping[str, Any]) -> Any:
    figure, axes = _figure(2)
    fields = (("eigenvalue", "dominant eigenvalue"), ("gradient_norm", "norm of the total gradient"))
    for axis, (field, title) in zip(axes, fields, strict=True):
        for name, lines in records.items():
            points = [(r["epoch"], r[field]) for r in lines if r.get(field)]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set(yscale="log", xlabel="epoch", title=title)
    axes[0].legend(fontsize=7)
    return figure


def _spectra(measured: Mapping[str, Any]) -> Any:
    figure, axes = _figure(2)
    for axis, split in zip(axes, ("train", "test"), strict=True):
        for name, record in measured.items():
            values = record[split]
            axis.plot(range(1, len(values) + 1), values, marker=".", label=name)
        axis.set(yscale="log", xlabel="number", title=f"largest Hessian eigenvalues, {split}")
    axes[0].legend(fontsize=7)
    return figure


def _block(measured: Mapping[str, Any]) -> Any:
    figure, (axis,) = _figure()
    for number, (name, record) in enumerate(measured.items()):
        whole, block = record["train"], record["last_layer"]
        axis.plot(range(1, len(whole) + 1), whole, color=f"C{number}", marker=".", label=name)
        axis.plot(range(1, len(block) + 1), block, color=f"C{number}", linestyle=":")
    axis.set(yscale="log", xlabel="number", title="whole Hessian, and dotted the last layer's block")
    axis.legend(fontsize=7)
    return figure


def _line(measured: Mapping[str, Any]) -> Any:
    figure, axes = _figure(2)
    for axis, split in zip(axes, ("train", "test"), strict=True):
        for name, record in measured.items():
            axis.plot(record["line_at"], record[f"line_{split}"], label=name)
        axis.set(yscale="log", xlabel="step along the dominant eigenvector", title=f"loss, {split}")
    axes[0].legend(fontsize=7)
    return figure


def _single(measured: Mapping[str, Any]) -> Any:
    figure, (axis,) = _figure()
    for number, (name, record) in enumerate(measured.items()):
        for image in (key for key in record if key.startswith("image_")):
            values = [value for value in record[image] if value > 0]
            label = name if image == "image_0" else None
            axis.plot(range(1, len(values) + 1), values, color=f"C{number}", alpha=0.6, label=label)
    axis.set(yscale="log", xlabel="number", title="Hessian eigenvalues of single training images")
    axis.legend(fontsize=7)
    return figure
