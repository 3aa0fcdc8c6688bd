"""Plan every run of the slides' tables: updates by the planner beside the updates that the slides print.

    python experiments/planned.py

Writes experiments/results/slides/README.md and planned.csv. Nothing is trained: the counts follow from the
settings of the configs, exactly for BL, FB and GG, and as bounds for ABS and ABSA, whose growth is measured.
"""

import csv
import pathlib
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from experiments import grid, slides  # noqa: E402
from hessabs.batch_size.methods import make_plans  # noqa: E402
from hessabs.batch_size.settings import METHODS, RunSettings  # noqa: E402

OUT = ROOT / "results/slides"


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


def plan(name: str) -> list[Planned]:
    """Plan the runs of a config of the slides.

    Args:
      name: The config; it must say which table it is, by SLIDES.

    Returns:
      A row for each run, in the order of the config.

    Raises:
      ValueError: If it does not.
    """
    this = grid.load(grid.find([name]))
    if this.slides is None:
        raise ValueError(f"{name} stands for no table of the slides: it has no SLIDES.")
    dataset, network, num_examples = this.slides
    printed = {
        (row.largest_batch, row.method): row
        for row in slides.rows()
        if (row.dataset, row.network) == (dataset, network)
    }
    result = []
    for label, config in this.runs.items():
        method, _, column = label.rpartition("/")[0].rpartition("_")
        run, rule = (
            kind(**{field: getattr(config, field) for field in kind._fields if field in config._fields})
            for kind in (RunSettings, METHODS[config.method])
        )
        bounds = make_plans(run, rule, num_examples)
        row = printed.get((int(column), method))
        result.append(
            Planned(
                config=name,
                dataset=dataset,
                network=network,
                largest_batch=int(column),
                method=method,
                slides_accuracy="" if row is None else row.accuracy,
                slides_updates="" if row is None else row.updates,
                fewest_updates=bounds.fewest.updates,
                most_updates=bounds.most.updates,
            )
        )
    return result


def configs() -> list[str]:
    """List the configs that stand for a table of the slides."""
    return [path.stem for path in sorted(grid.CONFIGS.glob("*.py")) if grid.load(path).slides]


def write(planned: list[Planned], out: pathlib.Path = OUT) -> None:
    """Write the rows as Markdown and as CSV.

    Args:
      planned: The rows.
      out: The folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "planned.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Planned._fields, "verdict"])
        writer.writerows([*row, row.verdict] for row in planned)
    lines = [
        "# The tables of the slides, planned",
        "",
        "`python experiments/planned.py`; updates as the slides count them (BL and FB with the remainder of",
        "an epoch, the others without). ABS and ABSA measure, so theirs are bounds: growth as early and as",
        "late as the settings of the config allow. The runs need a GPU: nothing was trained.",
    ]
    for config in dict.fromkeys(row.config for row in planned):
        lines += [
            "",
            f"## {config}",
            "",
            "| largest batch | method | slides: test % | slides: updates | planned | |",
        ]
        lines.append("|---" * 6 + "|")
        lines += [_line(row) for row in planned if row.config == config]
    (out / "README.md").write_text("\n".join([*lines, ""]))


def _line(row: Planned) -> str:
    def number(value: Any) -> str:
        return "" if value == "" else f"{value:,}"

    low, high = number(row.fewest_updates), number(row.most_updates)
    cells = [
        number(row.largest_batch),
        row.method,
        str(row.slides_accuracy),
        number(row.slides_updates),
        low if low == high else f"{low} to {high}",
        row.verdict,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    write([row for name in configs() for row in plan(name)])
