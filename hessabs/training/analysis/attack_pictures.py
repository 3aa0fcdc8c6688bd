"""The pictures of ``hessabs attack``: accuracy against epsilon, and images before and after."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hessabs.attacks import Evaluation


class Shown(NamedTuple):
    """Images that an attack felled."""

    title: str  # which attack
    clean: np.ndarray  # (n, height, width, channels), in [0, 1]
    attacked: np.ndarray  # the same after the attack
    before: np.ndarray  # (n,), int: predicted labels
    after: np.ndarray  # (n,), int


def draw_curve(path: pathlib.Path, rows: Sequence[Evaluation], title: str) -> None:
    """Draw the accuracy against epsilon, a line for each attack, from the clean accuracy on.

    Args:
      path: The PNG file to write.
      rows: What ``hessabs attack`` counted, the clean images first.
      title: Above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    clean, *attacked = rows
    for name in dict.fromkeys(row.attack for row in attacked):
        points = sorted((row.epsilon, 100 * row.accuracy) for row in attacked if row.attack == name)
        axis.plot(*zip((0.0, 100 * clean.accuracy), *points, strict=True), marker=".", label=name)
    axis.set_xlabel("epsilon")
    axis.set_ylabel("accuracy (%)")
    axis.set_ylim(0, 100)
    axis.set_title(title)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


def draw_sheet(path: pathlib.Path, shown: Shown) -> None:
    """Draw clean images, perturbations (stretched to the range of grey) and results, a column an example.

    Args:
      path: The PNG file to write.
      shown: At least one image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    number = len(shown.clean)
    figure = Figure(figsize=(1.6 * number + 0.8, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, number, squeeze=False)
    delta = shown.attacked - shown.clean
    largest = float(np.abs(delta).max())
    middle = 0.5 + delta / (2 * largest) if largest > 0 else 0.5 + delta
    for column in range(number):
        for row, (images, text) in enumerate(
            (
                (shown.clean, f"predicted {shown.before[column]}"),
                (middle, f"size {np.abs(delta[column]).max():.3g}"),
                (shown.attacked, f"predicted {shown.after[column]}"),
            )
        ):
            image = np.clip(images[column], 0, 1)
            axis = axes[row, column]
            axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(text, fontsize=9)
            axis.set_axis_off()
    figure.suptitle(shown.title)
    figure.savefig(path, dpi=120)
