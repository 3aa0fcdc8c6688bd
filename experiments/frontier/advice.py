"""What ``hessabs advise`` is worth: its rate and first batch, trained with ramp, beside tuned constant batches.

    python -m experiments.frontier.advice --data_dir DIR [--minutes M] [--report]

For each of ``CASES``: the advice once, then a run with it for each seed, with the settings of its frontier. The
last columns are of the frontier: the fewest updates with which its constant batches of tuned rates, that
optimiser and budget, come to the same held-out metric, on straight lines between them over the logarithm of the
updates. Runs are lines of experiments/results/advice/runs.jsonl; what is there is not done again.
"""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import grid, table, training, work
from experiments.frontier import search
from experiments.frontier.problems import PROBLEMS, Point, Problem, settings
from hessabs.training import OptimizerSettings, advise
from hessabs.training.look.results import cell, markdown
from hessabs.training.tasks.named import TaskSettings

NAME = "advice"
ADVICE = "advice.json"


class Case(NamedTuple):
    """A task of the frontier, an optimiser, and a budget."""

    problem: str
    optimizer: str
    epochs: int


CASES = (Case("mlp", "sgd", 10), Case("mlp", "muon", 10), Case("text", "muon", 1))


def ask(case: Case, data_dir: str | None, minutes: float) -> dict[str, Any]:
    """Let ``advise`` look at a task; returns what it chose and what that was read from."""
    base = PROBLEMS[case.problem].base
    task = TaskSettings(**{name: base[name] for name in TaskSettings._fields if name in base})
    own = {name: base[name] for name in OptimizerSettings._fields if name in base}
    found = advise(
        training.make_task(task._replace(data_dir=data_dir)),
        OptimizerSettings(**{**own, "optimizer": case.optimizer}),
        epochs=case.epochs,
        minutes=minutes,
    )
    return {
        "batch_size": found.settings["batch_size"],
        "lr": found.settings["lr"],
        "trials": {f"{rate:g}": loss if math.isfinite(loss) else None for rate, loss in found.trials.items()},
        "trial_examples": found.trial_examples,
    }


def fewest(problem: Problem, front: Sequence[tuple[float, float]], value: float) -> float | None:
    """Return the fewest updates with which constant batches, (updates, metric), come to a value, or None.

    >>> fewest(PROBLEMS["mlp"], [(100.0, 88.0), (400.0, 90.0)], 89.0)
    200.0
    >>> fewest(PROBLEMS["text"], [(100.0, 1.6), (400.0, 1.4)], 1.3) is None
    True
    """
    good = [(math.log(updates), problem.sign * metric) for updates, metric in sorted(front)]
    wanted, found = problem.sign * value, []
    for (x, y), (end, top) in itertools.pairwise(good):
        if min(y, top) <= wanted <= max(y, top) and y != top:
            found.append(x + (wanted - y) / (top - y) * (end - x))
    found += [x for x, y in good if y >= wanted]
    return round(math.exp(min(found)), 6) if found else None


def page(results: Any) -> str:
    """Write the table of the advice that there is."""
    advice, runs = json.loads((results / ADVICE).read_text()), table.read(results)
    head = ("task, optimiser, epochs", "first batch", "rate", "seeds", "updates", "held-out metric")
    rows = [[*head, "the same, constant: updates", "updates of it"]]
    for case in CASES:
        problem, label = PROBLEMS[case.problem], "-".join(map(str, case))
        done = [run for run in runs.values() if run.label == label]
        if not done:
            continue
        value, updates = (
            statistics.mean(run.summary[name] for run in done) for name in (problem.metric, "updates")
        )
        best = fewest(problem, _front(case), value)
        chosen: Mapping[str, Any] = advice[label]
        rows.append([
            f"{problem.title}; {case.optimizer}, {case.epochs}",
            f"{chosen['batch_size']:,}", f"{chosen['lr']:g}", str(len(done)),
            cell([run.summary["updates"] for run in done], "{:,.0f}"),
            cell([run.summary[problem.metric] for run in done], "{:.3f}" if problem.sign < 0 else "{:.2f}"),
            "none reaches it" if best is None else f"{best:,.0f}",
            "" if best is None else f"{updates / best:.2f}",
        ])  # fmt: skip
    trials = [
        f"- {label}: rates {', '.join(found['trials'])}, after {found['trial_examples']:,} examples each"
        for label, found in advice.items()
    ]
    sources = {(run.commit[:12], str(run.summary["hardware"])) for run in runs.values()}
    return "\n".join(
        [
            "# What the advice of `hessabs advise` comes to",
            "",
            "`python -m experiments.frontier.advice --data_dir DIR`",
            "",
            *markdown(rows),
            "",
            "Trials, a minute of them and compilation:",
            "",
            *trials,
            "",
            *sorted(f"commit {commit}; {hardware}" for commit, hardware in sources),
            "",
        ]
    )


def _front(case: Case) -> list[tuple[float, float]]:
    problem, found = PROBLEMS[case.problem], []
    for place in search.places(problem, table.read(grid.RESULTS / f"frontier_{case.problem}")):
        point, fine = place.point, [run for run in place.runs if "diverged" not in run.summary]
        if (point.optimizer, point.epochs, point.rule) == (case.optimizer, case.epochs, "constant") and fine:
            means = [statistics.mean(run.summary[name] for run in fine) for name in ("updates", problem.metric)]
            found.append((means[0], means[1]))
    return found


def main() -> None:
    """Ask, train and write the page."""
    parser = argparse.ArgumentParser(description="The advice, trained, beside the frontier.")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--minutes", type=float, default=1.0, help="of trials for each advice")
    parser.add_argument("--report", action="store_true", help="only write the page")
    options = parser.parse_args()
    place = work.Place(grid.RESULTS / NAME, grid.WORKDIRS / NAME)
    place.results.mkdir(parents=True, exist_ok=True)
    path = place.results / ADVICE
    advice = json.loads(path.read_text()) if path.exists() else {}
    source = work.origin("python -m experiments.frontier.advice")
    for case in () if options.report else CASES:
        label = "-".join(map(str, case))
        if label not in advice:
            advice[label] = ask(case, options.data_dir, options.minutes)
            path.write_text(json.dumps(advice, indent=1) + "\n")
        point = Point(case.optimizer, advice[label]["batch_size"], case.epochs, "ramp")
        for seed in PROBLEMS[case.problem].seeds:
            run = settings(PROBLEMS[case.problem], point, advice[label]["lr"], seed)
            done = work.do(place, f"{label}/seed{seed}", run, source, options.data_dir)
            if done is not None:
                print(done.name, done.summary["updates"], flush=True)
    (place.results / "README.md").write_text(page(place.results))
    print(page(place.results))


if __name__ == "__main__":
    main()
