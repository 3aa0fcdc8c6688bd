"""What a grid comes to: tables over seeds, a line for each run, and the pictures, beside the runs."""

import csv
import pathlib
from collections.abc import Sequence

from experiments import pictures
from experiments.grid import Grid
from hessabs.training import metrics
from hessabs.training.reports.curves import draw_curves
from hessabs.training.reports.results import (
    COLUMNS,
    Column,
    Finished,
    Group,
    cell,
    find,
    group,
    markdown,
    table,
    write_csv,
)

FINDINGS = "FINDINGS.md"  # what a person has read out of the table; it becomes part of README.md
_CPU_SECONDS, _SECONDS = Column("seconds_cpu", "CPU seconds", "{:.0f}"), Column("seconds", "seconds", "{:.1f}")
SHOWN = (*COLUMNS[:-1], _CPU_SECONDS)
_RUN_FIELDS = ("label", "seed", "commit", "diverged", *(column.field for column in SHOWN), "seconds")


def write(results: pathlib.Path, grid: Grid) -> str:
    """Write README.md, table.csv, runs.csv and curves.png of the runs that have finished.

    Args:
      results: The folder of the grid.
      grid: Its config; runs that it does not name come last.

    Returns:
      The text of README.md, or a line that says that no run has finished.
    """
    try:
        runs = find(results)
    except FileNotFoundError as error:
        return str(error)
    order = {label: i for i, label in enumerate(dict.fromkeys(name.rpartition("/")[0] for name in grid.runs))}
    runs.sort(key=lambda run: (order.get(run.label, len(order)), run.label, run.summary["seed"]))
    groups = group(runs)
    shown = (*COLUMNS[:-1], _SECONDS, _CPU_SECONDS) if grid.alone else SHOWN
    lines = [
        f"# {grid.title}",
        "",
        f"`python experiments/run.py {grid.name}`; mean ± standard deviation over seeds, accuracies on the",
        "test set; a network that diverged counts with the accuracy of chance.",
        "",
        *markdown(table(groups, shown)),
        "",
        *_origins(runs),
    ]
    missing = len(grid.runs.keys() - {f"{run.label}/seed{run.summary['seed']}" for run in runs})
    if missing:
        lines += ["", f"{missing} of the {len(grid.runs)} runs of the grid are missing."]
    if (results / FINDINGS).exists():
        lines += ["", (results / FINDINGS).read_text().strip()]
    lines += _spectra(grid.name, groups)
    drawn = pictures.draw(results, runs)
    lines += ["", f"Curves: seed {runs[0].summary['seed']}; curvature: the first seed that was measured.", ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in (*drawn, "curves.png")]
    text = "\n".join([*lines, ""])
    (results / "README.md").write_text(text)
    write_csv(results / "table.csv", groups, shown)
    _write_runs(results / "runs.csv", runs)
    draw_curves(results / "curves.png", _curves(groups))
    return text


def _spectra(config: str, groups: Sequence[Group]) -> list[str]:
    """Lay out what was measured of the trained networks, mean and deviation over the seeds that were."""
    measured = pictures.curvatures(groups)
    if not measured:
        return []
    examples = sorted({record["num_examples"] for records in measured.values() for record in records})
    shown = [
        (f"{name}, {place}", part, place - 1)
        for name, part, places in (
            ("train", "train", (1, 5, 20)), ("test", "test", (1,)), ("last layer", "last_layer", (1,)),
        )
        for place in places
    ]  # fmt: skip
    rows = [["run", "seeds", *(title for title, _, _ in shown)]]
    for name, records in measured.items():
        spectra = (
            cell([record[part][i] for record in records if i < len(record[part])], "{:.3g}")
            for _, part, i in shown
        )
        rows.append([name, ", ".join(str(record["seed"]) for record in records), *spectra])
    number = " or ".join(map(str, examples))
    return [
        "",
        f"Hessian eigenvalues of the trained networks by rank, on the first {number} images of each set; those",
        "of the last layer on training images. "
        f"`python experiments/measure.py {config} LABELS --num_examples {number} --seed SEED`:",
        "",
        *markdown(rows),
    ]


def _origins(runs: Sequence[Finished]) -> list[str]:
    commits: dict[str, list[str]] = {}
    for run in runs:
        commits.setdefault(run.commit, []).append(run.label)
    lines = [f"hardware: {', '.join(sorted({run.summary['hardware'] for run in runs}))}", ""]
    for commit, labels in commits.items():
        which = "" if len(commits) == 1 else f": {', '.join(dict.fromkeys(labels))}"
        lines += [f"commit {commit}{which}", ""]
    versions = runs[0].summary.get("versions") or {}
    return [*lines, "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items())]


def _write_runs(path: pathlib.Path, runs: Sequence[Finished]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, _RUN_FIELDS, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for run in runs:
            writer.writerow({**run.summary, "label": run.label})


def _curves(groups: Sequence[Group]) -> dict[str, list[dict[str, object]]]:
    return {
        g.name: metrics.read_lines(g.runs[0].folder / metrics.METRICS)
        for g in groups
        if (g.runs[0].folder / metrics.METRICS).exists()
    }
