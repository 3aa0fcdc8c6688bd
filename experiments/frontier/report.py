"""Tables and pictures of a frontier, from its table of runs alone."""

import pathlib
import statistics
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import table
from experiments.frontier import search
from experiments.frontier.problems import PROBLEMS, Problem
from experiments.frontier.search import Place
from hessabs.training.look.results import cell, markdown

FINDINGS = "FINDINGS.md"  # what a person has read out of the tables; it becomes part of README.md
_COLUMNS = (
    ("validation_accuracy", "validation %", "{:.2f}"),
    ("test_accuracy", "test %", "{:.2f}"),
    ("validation_pgd_accuracy", "validation PGD %", "{:.2f}"),
    ("pgd_accuracy", "PGD %", "{:.2f}"),
    ("validation_loss", "validation loss", "{:.4f}"),
    ("test_loss", "test loss", "{:.4f}"),
)


def write(name: str, results: pathlib.Path) -> str:
    """Write README.md and the pictures of a problem; returns the text."""
    problem, runs = PROBLEMS[name], table.read(results)
    places = search.places(problem, runs)
    if not places:
        return f"{results} has no chosen rate yet: python -m experiments.frontier.run {name}"
    constant = [place for place in places if place.point.rule == "constant"]
    ruled = [place for place in places if place.point.rule != "constant"]
    columns = [column for column in _COLUMNS if any(column[0] in r.summary for p in places for r in p.runs)]
    commits = sorted({run.commit for run in runs.values()})
    hardware = sorted({run.summary["hardware"] for run in runs.values()})
    left = sum(1 for _ in search.wanted(problem, runs))
    text = [
        f"# The frontier: {problem.title}",
        "",
        f"`python -m experiments.frontier.run {name}`; rates by factors of two, chosen on held-out data with "
        f"seed {problem.seeds[0]}; warm-up in the first tenth, then linear decay to zero; mean ± standard "
        f"deviation over seeds. {len(runs)} runs, at least {left} to come.",
        "",
        "## Constant batches, the rate tuned (of prodigy 1, which finds its own)",
        "",
        *_table(constant, columns, ("optimiser", "batch", "epochs", "rate")),
    ]
    if ruled:
        text += ["", "## Rules, untuned, with the rate that was tuned for their first batch", ""]
        text += _table(ruled, columns, ("optimiser", "rule", "first batch", "epochs", "rate"))
    if (results / FINDINGS).exists():
        text += ["", (results / FINDINGS).read_text().strip()]
    text += ["", *_draw(results, problem, places)]
    text += ["", f"hardware: {', '.join(hardware)}; commits: {', '.join(commits)}", ""]
    (results / "README.md").write_text("\n".join(text))
    return "\n".join(text)


def _table(places: Sequence[Place], columns: Sequence[tuple[str, str, str]], names: Sequence[str]) -> list[str]:
    head = [*names, "seeds", "updates", "examples", *(title for _, title, _ in columns)]
    rows = [head]
    for point, lr, runs in places:
        fine = [run for run in runs if "diverged" not in run.summary]
        cells = [point.optimizer, *([point.rule] if "rule" in names else []), f"{point.batch_size:,}"]
        cells += [str(point.epochs), f"{lr:g}"]
        cells += [
            str(len(fine)) if len(fine) == len(runs) else f"{len(fine)}, {len(runs) - len(fine)} diverged"
        ]
        cells += [cell([r.summary[n] for r in fine], "{:,.0f}") for n in ("updates", "samples")]
        cells += [cell([r.summary[n] for r in fine if n in r.summary], form) for n, _, form in columns]
        rows.append(cells)
    return markdown(rows)


def _mean(place: Place, field: str) -> float | None:
    values = [
        run.summary[field] for run in place.runs if field in run.summary and "diverged" not in run.summary
    ]
    return statistics.mean(values) if values else None


def _draw(results: pathlib.Path, problem: Problem, places: Sequence[Place]) -> list[str]:
    """Draw what can be drawn; returns the lines that show it."""
    drawn = []
    for name, paint in _PICTURES.items():
        figure = Figure(figsize=(9, 6), layout="constrained")
        axes = figure.subplots()
        if paint(axes, problem, places):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, ncols=2)
            figure.savefig(results / f"{name}.png", dpi=90)
            drawn.append(f"![{name}]({name}.png)")
    return drawn


def _to_target(axes: Axes, problem: Problem, places: Sequence[Place]) -> bool:
    """Updates of the smallest budget whose mean reaches the target, by batch (Shallue et al., 2019)."""
    reached: dict[str, dict[int, float]] = {}
    for place in sorted(places, key=lambda place: -place.point.epochs):
        value, updates = _mean(place, problem.metric), _mean(place, "updates")
        if place.point.rule != "constant" or value is None or updates is None:
            continue
        if problem.sign * value >= problem.sign * problem.target:
            reached.setdefault(place.point.optimizer, {})[place.point.batch_size] = updates
    for optimizer, found in reached.items():
        axes.plot(sorted(found), [found[batch] for batch in sorted(found)], marker="o", label=optimizer)
    axes.set(xscale="log", yscale="log", xlabel="batch (examples)")
    axes.set_ylabel(f"updates to {problem.metric.replace('_', ' ')} {problem.target:g}")
    _plain_ticks(axes, sorted({batch for found in reached.values() for batch in found}))
    return bool(reached)


def _plain_ticks(axes: Axes, batches: Sequence[int]) -> None:
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axes.minorticks_off()


def _against(x: str, y: str, log: bool = True) -> Callable[[Axes, Problem, Sequence[Place]], bool]:
    """Paint one number against another: constant batches as lines by optimiser and budget, rules as marks."""

    def paint(axes: Axes, problem: Problem, places: Sequence[Place]) -> bool:
        x_field, y_field = (problem.metric if name == "metric" else name for name in (x, y))
        if "loss" in problem.metric and "accuracy" in x + y:
            return False
        optimizers = problem.optimizers
        lines: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for place in places:
            a, b = _mean(place, x_field), _mean(place, y_field)
            if a is None or b is None:
                continue
            optimizer, epochs, rule = place.point.optimizer, place.point.epochs, place.point.rule
            if rule == "constant":
                lines.setdefault((optimizer, epochs), []).append((a, b))
            else:
                axes.plot(a, b, linestyle="", marker="x", color=f"C{optimizers.index(optimizer)}")
                axes.annotate(place.point.rule, (a, b), fontsize=6, xytext=(3, 3), textcoords="offset points")
        styles = ("-", "--", ":")
        for (optimizer, epochs), points in lines.items():
            style = styles[sorted(problem.budgets, reverse=True).index(epochs) % len(styles)]
            color = f"C{optimizers.index(optimizer)}"
            label = f"{optimizer}, {epochs} epochs"
            axes.plot(*zip(*points, strict=True), marker="o", linestyle=style, color=color, label=label)
        axes.set(xlabel=x_field.replace("_", " "), ylabel=y_field.replace("_", " "))
        if log:
            axes.set_xscale("log")
        return bool(lines)

    return paint


_PICTURES: dict[str, Callable[[Axes, Problem, Sequence[Place]], bool]] = {
    "updates_to_target": _to_target,
    "metric_by_updates": _against("updates", "metric"),
    "updates_by_examples": _against("samples", "updates"),
    "robustness_by_accuracy": _against("test_accuracy", "pgd_accuracy", log=False),
}
