"""The picture of what was tracked: curvature of the whole network and of its last layer, and the gradient."""

import pathlib
from typing import Any

PANELS = (
    (
        "largest Hessian eigenvalue",
        {"eigenvalue": "whole network", "last_layer_eigenvalue": "last layer's block"},
    ),
    ("norm of the total gradient", {"gradient_norm": "whole training set"}),
)

_WIDE = 20  # a wider range than this asks for a logarithmic axis


def draw_tracked(path: pathlib.Path, records: list[dict[str, Any]], *, title: str = "") -> bool:
    """Draw what ``hessabs train --track`` recorded, against epochs, one panel for each unit.

    Args:
      path: The image file to write; its suffix says the format.
      records: The lines of ``metrics.jsonl``.
      title: Above the picture.

    Returns:
      Whether there was anything to draw; if not, no file is written.
    """
    from matplotlib.figure import Figure

    panels = []
    for label, fields in PANELS:
        lines = {
            name: [(r["epoch"], r[field]) for r in records if r.get(field) is not None and r[field] > 0]
            for field, name in fields.items()
        }
        panels.append((label, {name: points for name, points in lines.items() if points}))
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return False
    figure = Figure(figsize=(6, 1 + 2.7 * len(panels)), layout="constrained")
    figure.suptitle(title)
    for axes, (label, lines) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for name, points in lines.items():
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", label=name)
        values = [value for points in lines.values() for _, value in points]
        wide = max(values) > _WIDE * min(values)
        axes.set(xlabel="epoch", ylabel=label, yscale="log" if wide else "linear")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    return True
