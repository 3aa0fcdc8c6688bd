"""The picture of a run: batch size, learning rate, eigenvalue and accuracy by epoch, as in the slides."""

import pathlib
from typing import Any, BinaryIO

PANELS = (
    ("batch_size", "batch size", "log"),
    ("lr", "learning rate", "log"),
    ("eigenvalue", "top Hessian eigenvalue", "log"),
    ("test_accuracy", "test accuracy (%)", "linear"),
)


def draw_curves(path: pathlib.Path | BinaryIO, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Draw four panels against epochs.

    Args:
      path: The PNG file to write, by its path or open.
      runs: Name of a run to its records of ``metrics.jsonl``; several runs share the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    for axis, (field, title, scale) in zip(axes.flat, PANELS, strict=True):
        for number, (name, records) in enumerate(runs.items()):
            points = [(r["epoch"], r[field]) for r in records if r[field] is not None]
            if scale == "log":
                points = [(x, y) for x, y in points if y > 0]
            if points:
                marker = "." if len(points) < 40 else ""
                axis.plot(*zip(*points, strict=True), marker=marker, color=f"C{number}", label=name)
        if scale == "log" and axis.lines:
            axis.set_yscale("log", base=2 if field == "batch_size" else 10)
        axis.set_title(title)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    if len(runs) > 1:
        axes.flat[0].legend()
    figure.savefig(path, dpi=120)
