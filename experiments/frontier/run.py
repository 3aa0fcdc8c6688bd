"""Draw the frontier: what a constant batch comes to when its rate is tuned, and what the untuned rules come to.

    python -m experiments.frontier.run PROBLEM [--data_dir DIR] [--jobs N] [--hours H] [--optimizers A,B]
        [--rules A,B] [--report]

PROBLEM is one of ``problems.PROBLEMS``. A run that has finished is a line of
experiments/results/frontier_PROBLEM/runs.jsonl, so the command goes on where it was cut; several processes may
work on one problem. --hours ends it after the run in which they have passed, --optimizers and
--rules begin runs of these alone (``constant`` is a rule, too), --report only writes the tables.
"""

import argparse
import sys
import time
from collections.abc import Collection

from experiments import grid, table, work
from experiments.frontier import report, search
from experiments.frontier.problems import PROBLEMS, RULES

_WAIT = 5.0  # seconds until the runs that others are at are looked at again


def main() -> None:
    """Do the runs that are wanted, then write the report."""
    parser = argparse.ArgumentParser(description="The frontier of tuned constant batches, and the rules.")
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each single-threaded if several")
    parser.add_argument("--hours", type=float, default=float("inf"), help="time after which no run begins")
    parser.add_argument("--optimizers", help="comma-separated: no run of another is begun")
    parser.add_argument("--rules", help="comma-separated: no run of another is begun; constant is one")
    parser.add_argument("--report", action="store_true", help="only write tables and pictures")
    options = parser.parse_args()
    name = f"frontier_{options.problem}"
    place = work.Place(grid.RESULTS / name, grid.WORKDIRS / name)
    if options.jobs > 1 and not options.report:
        work.share([sys.executable, "-m", "experiments.frontier.run", *sys.argv[1:], "--jobs=1"], options.jobs)
    elif not options.report:
        _work(options, place)
    if not work.is_worker():
        print(report.write(options.problem, place.results))


def _only(flag: str, given: str | None, known: Collection[str]) -> Collection[str]:
    names = given.split(",") if given else known
    if unknown := set(names) - set(known):
        raise SystemExit(f"--{flag}: {', '.join(known)}; got {', '.join(sorted(unknown))}")
    return names


def _work(options: argparse.Namespace, place: work.Place) -> None:
    name, data_dir = options.problem, options.data_dir
    problem, end = PROBLEMS[name], time.monotonic() + 3600 * options.hours
    optimizers = _only("optimizers", options.optimizers, problem.optimizers)
    rules = _only("rules", options.rules, ("constant", *RULES))
    problem = problem._replace(
        lr={name: lr for name, lr in problem.lr.items() if name in optimizers},
        untuned=tuple(name for name in problem.untuned if name in optimizers),
    )
    source = work.origin(f"python -m experiments.frontier.run {name}")
    while time.monotonic() < end:
        runs = table.read(place.results)
        wanted = [run for run in search.wanted(problem, runs) if run.rule in rules]
        if not wanted:
            return
        for run in wanted:
            done = work.do(place, run.name, run.settings, source, data_dir)
            if done is not None:
                print(_line(problem.metric, done), flush=True)
                break  # what is wanted may have changed
        else:
            time.sleep(_WAIT)


def _line(metric: str, run: table.Run) -> str:
    summary = run.summary
    result = "diverged" if "diverged" in summary else f"{metric} {summary[metric]:.4g}"
    return f"{run.name}: {result}, {summary['updates']:,} updates, {summary['seconds']:.0f} s"


if __name__ == "__main__":
    main()
