"""The picture that every run leaves, drawn by ``hessabs.plots``."""

import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from hessabs import plots

File = str | pathlib.Path | BinaryIO
DPI = 120
_CURVES = ("batch_size", "lr", "eigenvalue", "test_accuracy")
_INSIDE = 6  # more names would cover the curves


def draw_curves(path: File, runs: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draw batch size, learning rate, eigenvalue and accuracy by epoch, as in the slides, into a PNG file.

    The loss stands in for the accuracy where no run has one. ``runs``: name of a run to its records of
    ``metrics.jsonl``; several runs share the panels.
    """
    figure = plots.figure(10, 7)
    axes = figure.subplots(2, 2, sharex=True)
    has_accuracy = any("test_accuracy" in record for records in runs.values() for record in records)
    for axis, field in zip(axes.flat, _CURVES if has_accuracy else (*_CURVES[:-1], "test_loss"), strict=True):
        plots.curves(runs, field, axis)
    for axis in axes[0]:
        axis.set_xlabel("")
    if len(runs) > _INSIDE:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    elif len(runs) > 1:
        axes[0, 0].legend()
    figure.savefig(path, dpi=DPI)
