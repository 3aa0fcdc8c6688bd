"""The pictures of several panels that the commands write, made of ``hessabs.plots``."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hessabs import plots
from hessabs.batch_size import Bounds, Plan
from hessabs.training.curves import DPI, File

if TYPE_CHECKING:
    from hessabs.training.look.advise import Advice

_TRACKED = {  # field: (the one whose panel it shares, name)
    "eigenvalue": ("eigenvalue", "whole network"),
    "last_layer_eigenvalue": ("eigenvalue", "last layer's block"),
    "gradient_norm": ("gradient_norm", ""),
}
_TICKS = 4  # along the x of one of three panels


class Sheet(NamedTuple):
    """Images that an attack felled."""

    attack: str
    epsilon: float
    clean: np.ndarray  # (n, height, width, channels), in the units of epsilon
    attacked: np.ndarray  # the same after the attack
    true: list[str]  # n names of labels
    before: list[str]  # predicted
    after: list[str]
    shades: tuple[float, float] = (0.0, 1.0)  # what is black, and what is white


def draw_tracked(path: File, records: Sequence[Mapping[str, Any]], *, title: str = "") -> bool:
    """Draw what ``hessabs train --track`` recorded, a panel for each unit; False if there is nothing."""
    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for field, (panel, name) in _TRACKED.items():
        if any(record.get(field) for record in records):
            panels.setdefault(panel, {})[name] = [{**record, panel: record.get(field)} for record in records]
    if not panels:
        return False
    figure = plots.figure(6, 1 + 2.7 * len(panels))
    figure.suptitle(title)
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (field, runs) in zip(axes, panels.items(), strict=True):
        plots.curves(runs, field, axis)
        if len(runs) > 1:
            axis.legend()
    figure.savefig(path, dpi=DPI)
    return True


def draw_plans(path: File, bounds: Bounds, rates: Callable[[Plan], Sequence[float]], title: str) -> None:
    """Draw two plans, one line if they are the same: batch size, and the learning ``rates`` of the epochs."""
    plans = {"earliest growth": bounds.fewest, "latest growth": bounds.most}
    if bounds.fewest.epochs == bounds.most.epochs:
        plans = {"planned": bounds.most}
    runs = {
        f"{name}: {plan.updates:,} updates": [
            {"epoch": row.epoch, "batch_size": row.batch_size, "lr": lr}
            for row, lr in zip(plan.epochs, rates(plan), strict=True)
        ]
        for name, plan in plans.items()
    }
    figure = plots.figure(8, 5)
    for axis, field in zip(figure.subplots(2, 1, sharex=True), ("batch_size", "lr"), strict=True):
        plots.curves(runs, field, axis).label_outer()
    figure.axes[0].set_title(title)
    figure.axes[0].legend()
    figure.savefig(path, dpi=DPI)


def draw_advice(path: File, advice: "Advice") -> None:
    """Draw the held-out loss by rate, examples a second by batch, and the noise scale by layer."""
    figure = plots.figure(13, 3.6)
    left, middle, right = figure.subplots(1, 3)
    fine = {rate: loss for rate, loss in advice.trials.items() if math.isfinite(loss)}
    left.plot(list(fine), list(fine.values()), marker="o")
    left.set(xlabel=f"learning rate at batch {advice.trial_batch_size}")
    left.set_ylabel(f"held-out loss after {advice.trial_examples:,} examples (nats)")
    plots.log_axis(left, "x", ticks=_TICKS)
    sizes, first = list(advice.seconds), advice.settings["batch_size"]
    middle.plot(sizes, [size / advice.seconds[size] for size in sizes], marker="o")
    middle.axvline(first, linestyle="--", color="C1", label="first batch advised")
    middle.set(ylim=(0, None), xlabel="examples in a gradient", ylabel="examples a second")
    plots.log_axis(middle, "x", sizes=True, ticks=_TICKS)
    middle.legend()
    plots.noise_scale(advice.noise, right)
    figure.savefig(path, dpi=DPI)


def draw_sheet(path: File, sheet: Sheet) -> None:
    """Draw clean images, perturbations (stretched to the range of grey) and results, a column an example."""
    number = len(sheet.clean)
    figure = plots.figure(1.8 * number + 0.8, 6.4)
    axes = figure.subplots(3, number, squeeze=False)
    delta, (black, white) = sheet.attacked - sheet.clean, sheet.shades
    clean, attacked = ((images - black) / (white - black) for images in (sheet.clean, sheet.attacked))
    largest = float(np.abs(delta).max())
    middle = 0.5 + delta / (2 * largest) if largest > 0 else 0.5 + delta
    for column in range(number):
        shown = (
            (clean, f"true {sheet.true[column]}\npredicted {sheet.before[column]}"),
            (middle, f"largest change {np.abs(delta[column]).max():.3g}"),
            (attacked, f"{sheet.attack}:\npredicted {sheet.after[column]}"),
        )
        for axis, (images, text) in zip(axes[:, column], shown, strict=True):
            image = np.clip(images[column], 0, 1)
            axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
            axis.set_title(text, fontsize=9)
            axis.set_axis_off()
    figure.suptitle(f"{sheet.attack}, the strongest attack, at epsilon {sheet.epsilon:g}")
    figure.savefig(path, dpi=DPI)


def save(path: File, ax: Any, title: str) -> None:
    """Write the figure of what ``hessabs.plots`` has drawn, under a title."""
    ax.set_title(title)
    ax.figure.savefig(path, dpi=DPI)
