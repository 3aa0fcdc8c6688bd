"""The picture that every run leaves, drawn by ``hessabs.plots``."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from hessabs import plots

File = str | pathlib.Path | BinaryIO
DPI = 120
_CURVES = ("batch_size", "lr", "eigenvalue", "test_accuracy")
_PLACES = {1: "A", 2: "A;B", 3: "AB;CC", 4: "AB;CD"}  # of so many panels
_INSIDE = 6  # more names would cover the curves


def draw_curves(path: File, runs: Mapping[str, list[dict[str, Any]]]) -> None:
    """Draw batch size, learning rate, eigenvalue and accuracy by epoch, as in the slides, into a PNG file.

    The loss stands in for the accuracy where no run has one. What no run has gets no panel: an eigenvalue, of a
    method that measures none. ``runs``: name of a run to its records of ``metrics.jsonl``; several runs share
    the panels.
    """
    every = [record for records in runs.values() for record in records]
    has_accuracy = any("test_accuracy" in record for record in every)
    fields = _CURVES if has_accuracy else (*_CURVES[:-1], "test_loss")
    known = [name for name in fields if any(_is_known(record.get(name)) for record in every)] or fields
    figure = plots.figure(10, 7)
    axes = list(figure.subplot_mosaic(_PLACES[len(known)], sharex=True).values())
    for axis, field in zip(axes, known, strict=True):
        plots.curves(runs, field, axis).tick_params(labelbottom=True)
    if len(runs) > _INSIDE:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    elif len(runs) > 1:
        axes[0].legend()
    figure.savefig(path, dpi=DPI)


def _is_known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)  # what was not measured is NaN until it is written
