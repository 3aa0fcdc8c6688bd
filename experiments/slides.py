"""The result tables of the slides, and the grids of runs that they stand for.

Yao, Gholami, Keutzer, Mahoney: Large Scale Training of Neural Networks, Berkeley, November 2018. ``slides.csv``
holds their accuracies and updates as printed, two misprints included (SVHN: 81,986 and 45,935 updates).
"""

import csv
import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

METHODS = ("bl", "fb", "gg", "abs", "absa")
_FILE = pathlib.Path(__file__).with_name("slides.csv")


class Row(NamedTuple):
    """One run of a table of the slides."""

    dataset: str
    network: str
    largest_batch: int
    method: str
    accuracy: float  # percent
    updates: int


def rows() -> list[Row]:
    """Read the tables of the slides."""
    with _FILE.open(newline="") as file:
        return [
            Row(
                line["dataset"],
                line["network"],
                int(line["largest_batch"]),
                line["method"],
                float(line["accuracy_percent"]),
                int(line["updates"]),
            )
            for line in csv.DictReader(file)
        ]


def runs(
    columns: Sequence[int],
    *,
    smallest: int = 128,
    methods: Sequence[str] = METHODS,
    two_decays: float | None = None,
    growing: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make the runs of a table: each method at each largest batch, and BL at the smallest.

    At the smallest batch nothing can grow, and all methods are BL (ABSA with adversarial examples besides).

    Args:
      columns: The largest batches, without the smallest.
      smallest: The batch that everything starts from.
      methods: Of ``METHODS``.
      two_decays: The decay of a schedule with two decays alone, where GG's growth is raised until two growths
        reach the largest batch, ``ceil(sqrt(largest / smallest))``, as the counts of the slides say.
      growing: Settings of abs and absa alone.

    Returns:
      Settings by the name METHOD_COLUMN, a GRID of a config.

    Example:
      >>> list(runs((640,), methods=("bl", "gg")))
      ['bl_128', 'bl_640', 'gg_640']
    """
    result: dict[str, dict[str, Any]] = {f"bl_{smallest}": {"method": "bl", "batch_size": smallest}}
    for method in methods:
        for column in columns:
            own: dict[str, Any] = {"method": method, "batch_size": smallest, "max_batch_size": column}
            if method == "bl":
                own = {"method": method, "batch_size": column}
            elif method == "gg" and two_decays is not None:
                reach = math.ceil(math.sqrt(column / smallest))
                own["growth_factor"] = float(max(round(1 / two_decays), reach))
            elif method in ("abs", "absa"):
                own |= growing or {}
            result[f"{method}_{column}"] = own
    return result
