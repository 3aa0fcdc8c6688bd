"""Pictures of a grid that follow the slides, drawn from its table of runs.

Those of curvature and of robustness appear where ``experiments/measure.py`` has measured runs.
"""

import collections
import pathlib
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from experiments.table import Run
from hessabs import plots
from hessabs.training.curves import draw_curves
from hessabs.training.look.results import Group


def draw(results: pathlib.Path, groups: Sequence[Group], runs: Mapping[str, Run]) -> list[str]:
    """Draw all pictures for which there is something to draw; returns the names of the files."""
    columns = _by_method([g for g in groups if g.values("test_accuracy")])
    records = {g.name: runs[str(g.runs[0].folder)].records for g in groups}
    records = {name: lines for name, lines in records.items() if len(lines) > 1}  # one epoch is no curve
    measured = {name: found[0] for name, found in curvatures(groups, runs).items()}
    tracked = {name: lines for name, lines in records.items() if "gradient_norm" in lines[-1]}
    pictures: list[tuple[str, Any, Callable[[Any], Figure]]] = [
        ("schedules", _one_column(records), _schedules),
        ("accuracy", columns if any(map(_is_a_line, columns.values())) else {}, _accuracy),
        ("models", robustness([g.runs[0].label for g in groups], runs), _models),
        ("tracked", tracked, _tracked),
        ("spectra", measured, _spectra),
        ("block", measured, _block),
        ("line", measured, _line),
        ("single", measured, _single),
    ]
    drawn = [f"{name}.png" for name, data, _ in pictures if data]
    for name, data, paint in pictures:
        if data:
            paint(data).savefig(results / f"{name}.png", dpi=110 if name == "models" else 90)
    if records:
        draw_curves(results / "curves.png", records)
        drawn.append("curves.png")
    return drawn


def curvatures(groups: Sequence[Group], runs: Mapping[str, Run]) -> dict[str, list[dict[str, Any]]]:
    """Gather what was measured of the curvature: a record of each run with its seed, by group."""
    found = {g.name: [runs[str(run.folder)] for run in g.runs] for g in groups}
    measured = {
        name: [{"seed": r.summary["seed"], **r.measured["curvature"]} for r in rs if "curvature" in r.measured]
        for name, rs in found.items()
    }
    return {name: records for name, records in measured.items() if records}


def robustness(labels: Sequence[str], runs: Mapping[str, Run]) -> dict[str, list[Run]]:
    """Gather the runs that were attacked by their labels, in this order, the seeds of all commits together."""
    found: dict[str, list[Run]] = {label: [] for label in labels}
    for run in sorted(runs.values(), key=lambda run: run.summary["seed"]):
        if "robustness" in run.measured and run.label in found:
            found[run.label].append(run)
    return {label: mine for label, mine in found.items() if mine}


def _figure(columns: int = 1) -> tuple[Figure, Any]:
    figure = plots.figure(4.5 * columns + 1, 3.8)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes


def _by_method(groups: Sequence[Group]) -> dict[str, list[tuple[int, Group]]]:
    """Sort groups named METHOD_COLUMN: method to (column, group), by column."""
    found: dict[str, list[tuple[int, Group]]] = {}
    for g in groups:
        method, _, column = g.name.partition(" @")[0].rpartition("_")
        if method and column.isdecimal():
            found.setdefault(method, []).append((int(column), g))
    return {method: sorted(points, key=lambda point: point[0]) for method, points in found.items()}


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


def _schedules(records: Mapping[str, Any]) -> Figure:
    return _by_epoch(records, ("batch_size", "lr"))


def _accuracy(tables: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(2)
    fields = (("test_accuracy", "test accuracy (%)"), ("pgd_accuracy", "accuracy under PGD (%)"))
    for axis, (field, title) in zip(axes, fields, strict=True):
        for method, points in tables.items():
            known = [(column, g.values(field)) for column, g in points if g.values(field)]
            spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in known]
            heights = [mean(values) for _, values in known]
            axis.errorbar([c for c, _ in known], heights, spread, marker=".", capsize=2, label=method)
        plots.log_axis(axis, "x", sizes=True).set(xlabel="largest batch (examples)", title=title)
    axes[0].legend(fontsize=7)
    return figure


def _models(measured: Mapping[str, Sequence[Run]]) -> Figure:
    """Paint accuracies by model and attack, and the spectra, means over seeds."""
    found = {label: [run.measured["robustness"] for run in runs] for label, runs in measured.items()}
    figure = plots.figure(13, 5)
    left, right = figure.subplots(1, 2)
    names = list(next(iter(found.values()))[0]["accuracy"])
    means = [
        [mean(record["accuracy"][name] for record in records) for name in names] for records in found.values()
    ]
    image = left.imshow(means, cmap="viridis", aspect="auto")
    left.set_xticks(range(len(names)), names, rotation=30)
    left.set_yticks(range(len(found)), list(found))
    for i, row in enumerate(means):
        for j, value in enumerate(row):
            left.text(j, i, f"{value:.1f}", ha="center", va="center", color="w", fontsize=8)
    left.set_title("accuracy (%) by training (rows) and attack (columns)")
    figure.colorbar(image, ax=left)
    for number, (label, records) in enumerate(found.items()):
        spectrum = [mean(values) for values in zip(*(record["eigenvalues"] for record in records), strict=True)]
        style = {"color": "k", "linewidth": 2.5} if label == "plain" else {"color": f"C{(number - 1) % 10}"}
        right.plot(range(1, len(spectrum) + 1), spectrum, marker=".", label=label, **style)
    plots.log_axis(right, "y").set(xlabel="number", title=f"top {len(spectrum)} Hessian eigenvalues")
    right.grid(alpha=0.3)
    right.legend(ncols=2, fontsize=8)
    return figure


def _tracked(records: Mapping[str, Any]) -> Figure:
    return _by_epoch(records, ("eigenvalue", "gradient_norm"))


def _by_epoch(records: Mapping[str, Any], fields: Sequence[str]) -> Figure:
    figure, axes = _figure(2)
    for axis, field in zip(axes, fields, strict=True):
        plots.curves(records, field, axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def _spectra(measured: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(2)
    for axis, split in zip(axes, ("train", "test"), strict=True):
        plots.eigenvalues({name: record[split] for name, record in measured.items()}, axis)
        axis.set_title(f"largest Hessian eigenvalues, {split}")
    axes[0].legend(fontsize=7)
    return figure


def _block(measured: Mapping[str, Any]) -> Figure:
    figure, (axis,) = _figure()
    plots.eigenvalues({name: record["train"] for name, record in measured.items()}, axis)
    for number, record in enumerate(measured.values()):
        block = record["last_layer"]
        axis.plot(range(1, len(block) + 1), block, color=f"C{number}", linestyle=":")
    plots.log_axis(axis, "y").set_title("whole Hessian, and dotted the last layer's block")
    axis.legend(fontsize=7)
    return figure


def _line(measured: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(2)
    for axis, split in zip(axes, ("train", "test"), strict=True):
        for name, record in measured.items():
            axis.plot(record["line_at"], record[f"line_{split}"], label=name)
        plots.log_axis(axis, "y").set(
            xlabel="step along the dominant eigenvector", title=f"loss (nats), {split}"
        )
    axes[0].legend(fontsize=7)
    return figure


def _single(measured: Mapping[str, Any]) -> Figure:
    figure, (axis,) = _figure()
    for number, (name, record) in enumerate(measured.items()):
        for image in (key for key in record if key.startswith("image_")):
            values = [value for value in record[image] if value > 0]
            label = name if image == "image_0" else None
            axis.plot(range(1, len(values) + 1), values, color=f"C{number}", alpha=0.6, label=label)
    plots.log_axis(axis, "y").set(xlabel="number", title="Hessian eigenvalues of single training images")
    axis.legend(fontsize=7)
    return figure
