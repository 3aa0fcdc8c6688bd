"""The tables of the slides, the grids of runs that they stand for, and how many updates those plan.

    python experiments/slides.py

writes experiments/results/slides/README.md and planned.csv: updates by the planner beside the updates that the
slides print. Nothing is trained: the counts follow from the settings of the configs, exactly for BL, FB and GG,
and as bounds for ABS and ABSA, whose growth is measured.

Yao, Gholami, Keutzer, Mahoney: Large Scale Training of Neural Networks, Berkeley, November 2018. ``slides.csv``
holds their accuracies and updates as printed, two misprints included (SVHN: 81,986 and 45,935 updates).
"""

import csv
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import grid, training

METHODS = ("bl", "fb", "gg", "abs", "absa")
OUT = grid.RESULTS / "slides"
_FILE = pathlib.Path(__file__).with_name("slides.csv")


class Row(NamedTuple):
    """One run of a table of the slides."""

    dataset: str
    network: str
    largest_batch: int
    method: str
    accuracy: float  # percent
    updates: int


class Planned(NamedTuple):
    """A run of the slides: what they print and what the planner says."""

    config: str
    dataset: str
    network: str
    largest_batch: int
    method: str
    slides_accuracy: float | str  # percent; "" where the slides print none
    slides_updates: int | str
    fewest_updates: int
    most_updates: int

    @property
    def verdict(self) -> str:
        """Say whether the printed count is the planned one, or lies within its bounds."""
        if self.slides_updates == "":
            return ""
        if self.fewest_updates <= int(self.slides_updates) <= self.most_updates:
            return "equal" if self.fewest_updates == self.most_updates else "within"
        return "differs"


def rows() -> list[Row]:
    """Read the tables of the slides."""
    with _FILE.open(newline="") as file:
        return [
            Row(data, network, int(largest), method, float(accuracy), int(updates))
            for data, network, largest, method, accuracy, updates in list(csv.reader(file))[1:]
        ]


def runs(
    columns: Sequence[int],
    *,
    smallest: int = 128,
    methods: Sequence[str] = METHODS,
    two_decays: float | None = None,
    growing: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make the GRID of a config: each method at each largest batch, and BL at the smallest.

    At the smallest batch nothing can grow, and all methods are BL (ABSA with adversarial examples besides).

    Args:
      columns: The largest batches, without the smallest.
      smallest: The batch that everything starts from.
      methods: Of ``METHODS``.
      two_decays: The decay of a schedule with two decays alone, where GG's growth is raised until two growths
        reach the largest batch, ``ceil(sqrt(largest / smallest))``, as the counts of the slides say.
      growing: Settings of abs and absa alone.

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


def configs() -> list[str]:
    """List the configs that stand for a table of the slides."""
    return [name for name in grid.names() if grid.load(grid.find([name])).slides]


def plan(name: str) -> list[Planned]:
    """Plan the runs of a config that says by SLIDES which table it is, in its order."""
    this = grid.load(grid.find([name]))
    if this.slides is None:
        raise ValueError(f"{name} stands for no table of the slides: it has no SLIDES.")
    dataset, network, num_examples = this.slides
    printed: dict[tuple[int, str], tuple[float | str, int | str]] = {
        (row.largest_batch, row.method): (row.accuracy, row.updates)
        for row in rows()
        if (row.dataset, row.network) == (dataset, network)
    }
    result = []
    for label in this.labels:
        method, _, column = label.rpartition("_")
        settings = next(run for name, run in this.runs.items() if name.startswith(f"{label}/"))
        accuracy, updates = printed.get((int(column), method), ("", ""))
        fewest, most = training.planned_updates(settings, num_examples)
        row = Planned(name, dataset, network, int(column), method, accuracy, updates, fewest, most)
        result.append(row)
    return result


def write(planned: Sequence[Planned], out: pathlib.Path = OUT) -> None:
    """Write the rows as Markdown and as CSV."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "planned.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Planned._fields, "verdict"])
        writer.writerows([*row, row.verdict] for row in planned)
    lines = [
        "# The tables of the slides, planned",
        "",
        "`python experiments/slides.py`; updates as the slides count them (BL and FB with the remainder of",
        "an epoch, the others without). ABS and ABSA measure, so theirs are bounds: growth as early and as",
        "late as the settings of the config allow. The runs need a GPU: nothing was trained.",
    ]
    for config in dict.fromkeys(row.config for row in planned):
        lines += ["", f"## {config}", ""]
        lines += ["| largest batch | method | slides: test % | slides: updates | planned | |", "|---" * 6 + "|"]
        lines += [_line(row) for row in planned if row.config == config]
    (out / "README.md").write_text("\n".join([*lines, ""]))


def _line(row: Planned) -> str:
    counts = (row.largest_batch, row.slides_updates, row.fewest_updates, row.most_updates)
    column, updates, low, high = ("" if count == "" else f"{count:,}" for count in counts)
    planned = low if low == high else f"{low} to {high}"
    return f"| {column} | {row.method} | {row.slides_accuracy} | {updates} | {planned} | {row.verdict} |"


if __name__ == "__main__":
    write([row for name in configs() for row in plan(name)])
