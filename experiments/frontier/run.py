"""Draw the frontier: what a constant batch comes to when its rate is tuned, and what the untuned rules come to.

    python -m experiments.frontier.run PROBLEM [--data_dir DIR] [--jobs N] [--hours H] [--only PATTERN,...]
        [--report]

PROBLEM is one of ``problems.PROBLEMS``. A run that has finished is a line of
experiments/results/frontier_PROBLEM/runs.jsonl, so the command goes on where it was cut; several processes may
work on one problem. --hours ends it after the run in which they have passed, --only begins those alone whose
names match (``muon-ramp-b512-*``), --report only writes the tables.
"""

import argparse
import sys
import time
from fnmatch import fnmatch

from experiments import grid, table, work
from experiments.frontier import report, search
from experiments.frontier.problems import PROBLEMS

_WAIT = 5.0  # seconds until the runs that others are at are looked at again


def main() -> None:
    """Do the runs that are wanted, then write the report."""
    parser = argparse.ArgumentParser(description="The frontier of tuned constant batches, and the rules.")
    parser.add_argument("problem", choices=PROBLEMS)
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each single-threaded if several")
    parser.add_argument("--hours", type=float, default=float("inf"), help="time after which no run begins")
    parser.add_argument("--only", default="*", help="names of runs, comma-separated; * stands for anything")
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


def _work(options: argparse.Namespace, place: work.Place) -> None:
    problem, end = PROBLEMS[options.problem], time.monotonic() + 3600 * options.hours
    source = work.origin(f"python -m experiments.frontier.run {options.problem}")
    while time.monotonic() < end:
        wanted = list(search.wanted(problem, table.read(place.results)))
        chosen = [run for run in wanted if any(fnmatch(run.name, name) for name in options.only.split(","))]
        if not chosen:
            return
        for run in chosen:
            done = work.do(place, run.name, run.settings, source, options.data_dir)
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
