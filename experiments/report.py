"""What the grids come to: a README and pictures beside each table of runs, made from the table alone.

    python experiments/report.py [CONFIG ...]

Without a name, all that has results, the time table (``experiments/overhead.py``) and the plan of the slides
(``experiments/slides.py``).
"""

import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import grid, overhead, pictures, slides, table
from experiments.grid import Grid
from experiments.table import Run
from hessabs.training.look import results as tables
from hessabs.training.look.results import COLUMNS, Column, Finished, Group, cell, markdown

FINDINGS = "FINDINGS.md"  # what a person has read out of the table; it becomes part of README.md
_CPU_SECONDS, _SECONDS = Column("seconds_cpu", "CPU seconds", "{:.0f}"), Column("seconds", "seconds", "{:.1f}")
SHOWN = (*COLUMNS[:-1], _CPU_SECONDS)


def main(names: Sequence[str]) -> None:
    """Make the reports of the configs that are named, or of all."""
    for name in names or grid.names():
        results = grid.RESULTS / name
        if names or (results / table.FILE).exists():
            write(results, grid.load(grid.find([name])))
            print(results / "README.md", flush=True)
    if not names:
        overhead.write()
        slides.write([row for name in slides.configs() for row in slides.plan(name)])


def group(runs: Mapping[str, Run], grid: Grid) -> list[Group]:
    """Put the seeds of a label and commit together, in the order of the config, other labels last."""
    order = {label: i for i, label in enumerate(grid.labels)}
    found = sorted(
        runs.values(), key=lambda run: (order.get(run.label, len(order)), run.label, run.summary["seed"])
    )
    return tables.group([Finished(r.label, r.commit, r.summary, pathlib.Path(r.name)) for r in found])


def write(results: pathlib.Path, grid: Grid) -> str:
    """Write README.md and the pictures of the runs that have finished; returns the text."""
    runs = table.read(results)
    if not runs:
        return f"{results} holds no finished run ({table.FILE}): python experiments/run.py {grid.name}"
    groups = group(runs, grid)
    drawn = pictures.draw(results, groups, runs)
    text = describe(results, grid, runs, groups, drawn)
    (results / "README.md").write_text(text)
    return text


def describe(
    results: pathlib.Path, grid: Grid, runs: Mapping[str, Run], groups: Sequence[Group], drawn: Sequence[str]
) -> str:
    """Return the text of README.md with the pictures that are named."""
    shown = (*COLUMNS[:-1], _SECONDS, _CPU_SECONDS) if grid.alone else SHOWN
    lines = [
        f"# {grid.title}",
        "",
        f"`python experiments/run.py {grid.name}`; mean ± standard deviation over seeds, accuracies on the",
        "test set; a network that diverged counts with the accuracy of chance.",
        "",
        *markdown(tables.table(groups, shown)),
        "",
        *_origins(groups),
    ]
    missing = len(grid.runs.keys() - runs.keys())
    if missing:
        lines += ["", f"{missing} of the {len(grid.runs)} runs of the grid are missing."]
    if (results / FINDINGS).exists():
        lines += ["", (results / FINDINGS).read_text().strip()]
    lines += _robustness(grid, runs)
    lines += _spectra(grid.name, groups, runs)
    if drawn:
        first = groups[0].runs[0].summary["seed"]
        lines += ["", f"Curves: seed {first}; curvature: the first seed that was measured.", ""]
        lines += [f"![{name.removesuffix('.png')}]({name})" for name in drawn]
    return "\n".join([*lines, ""])


def _origins(groups: Sequence[Group]) -> list[str]:
    commits: dict[str, list[str]] = {}
    for run in (run for g in groups for run in g.runs):
        commits.setdefault(run.commit, []).append(run.label)
    hardware = sorted({run.summary["hardware"] for g in groups for run in g.runs})
    lines = [f"hardware: {', '.join(hardware)}", ""]
    for commit, labels in commits.items():
        which = "" if len(commits) == 1 else f": {', '.join(dict.fromkeys(labels))}"
        lines += [f"commit {commit}{which}", ""]
    versions = groups[0].runs[0].summary.get("versions") or {}
    return [*lines, "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items())]


def _spectra(config: str, groups: Sequence[Group], runs: Mapping[str, Run]) -> list[str]:
    """Lay out what was measured of the trained networks, mean and deviation over the seeds that were."""
    measured = pictures.curvatures(groups, runs)
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


def _robustness(grid: Grid, runs: Mapping[str, Run]) -> list[str]:
    """Lay out the accuracy of each network under each attack, over the seeds that were measured."""
    measured = pictures.robustness(grid.labels, runs)
    if not measured:
        return []
    every = [run.measured["robustness"] for found in measured.values() for run in found]
    names = list(every[0]["accuracy"])
    rows = [["trained with", "seeds", *names, "eigenvalue 1", "eigenvalue 20"]]
    for label, found in measured.items():
        records = [run.measured["robustness"] for run in found]
        values = [[record["accuracy"][name] for record in records] for name in names]
        values += [[record["eigenvalues"][i] for record in records] for i in (0, 19)]
        rows.append([label, ", ".join(str(run.summary["seed"]) for run in found), *map(_mean, values)])
    return [
        "",
        "## Under each attack",
        "",
        f"Accuracy in percent on the first {every[0]['num_examples']:,} test images, mean and deviation over",
        "the seeds given; L-infinity attacks (FGSM, FGSM-10, FHSM, PGD of 40 steps) at 0.02, L2 attacks",
        "(L2GRAD, L2HESS) at 0.5. Eigenvalues 1 and 20 of the Hessian on as many training images.",
        f"`python experiments/measure.py {grid.name} '*' --what robustness --num_examples "
        f"{every[0]['num_examples']}`:",
        "",
        *markdown(rows),
        "",
        f"measured at commit {', '.join(sorted({record['commit'] for record in every}))}",
    ]


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main(sys.argv[1:])
