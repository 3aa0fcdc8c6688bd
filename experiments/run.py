"""Run the grid of a config, and build its table and pictures from what has finished.

    python experiments/run.py CONFIG [--data_dir DIR] [--jobs N] [--only LABEL,...] [--seeds N,...] [--smoke]

CONFIG is a file of experiments/configs, or the path of another. A run that has finished is a line of
experiments/results/CONFIG/runs.jsonl and is skipped, so an interrupted grid continues where it stopped, a run
that was cut off at its last checkpoint. While it is at work, and for its trained params, a run has a folder of
runs/CONFIG. Several processes may work on one grid, here (--jobs) or started by hand: each run is locked by the
one that is at it. Runs of another commit are kept and reported apart; --fresh moves them aside and runs anew.
With --smoke, two epochs of the first seed, all in runs/CONFIG_smoke.
"""

import collections
import fnmatch
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import grid, provenance, report, table, work

_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
_JOBS = flags.DEFINE_integer("jobs", 1, "processes, each single-threaded if there are several", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "run only these labels; * stands for anything")
_SEEDS = flags.DEFINE_list("seeds", [], "run only these seeds")
_SMOKE = flags.DEFINE_bool("smoke", False, "two epochs of the first seed")
_FRESH = flags.DEFINE_bool("fresh", False, "move runs of other commits aside, to LABEL@COMMIT, and run anew")
_RESULTS = flags.DEFINE_string("results", str(grid.RESULTS), "folder of the tables of all grids")
_WORKDIRS = flags.DEFINE_string("workdirs", str(grid.WORKDIRS), "folder of the runs at work and their params")


def main(argv: Sequence[str]) -> None:
    """Run a config given by name."""
    logging.set_verbosity(logging.WARNING)
    try:
        this = grid.load(grid.find(argv[1:]))
    except ValueError as error:
        sys.exit(f"experiments/run.py: {error}")
    place = work.Place(pathlib.Path(_RESULTS.value) / this.name, pathlib.Path(_WORKDIRS.value) / this.name)
    if _SMOKE.value:
        workdirs = place.workdirs.with_name(f"{this.name}_smoke")
        place, first = work.Place(workdirs, workdirs), next(iter(this.runs.values()))["seed"]
        runs = {name: {**run, "epochs": 2} for name, run in this.runs.items() if run["seed"] == first}
        this = this._replace(runs=runs)
    wanted = [name for name in this.runs if _is_wanted(*name.rsplit("/seed", 1))]
    _look_at_other_commits(place, wanted)
    if _JOBS.value > 1:
        work.share([sys.executable, *sys.argv, "--jobs=1", "--nofresh"], _JOBS.value)
    else:
        source = work.origin(f"python experiments/run.py {this.name}")
        for name in wanted:
            run = work.do(place, name, this.runs[name], source, _DATA_DIR.value)
            if run is not None:
                print(work.line(run), flush=True)
    if not work.is_worker():
        print(report.write(place.results, this))


def _is_wanted(label: str, seed: str) -> bool:
    wanted = not _ONLY.value or any(fnmatch.fnmatch(label, pattern) for pattern in _ONLY.value)
    return wanted and (not _SEEDS.value or seed in _SEEDS.value)


def _look_at_other_commits(place: work.Place, names: Sequence[str]) -> None:
    here, done = provenance.commit(), table.read(place.results)
    others = [name for name in names if name in done and done[name].commit != here]
    for commit, count in collections.Counter(done[name].commit for name in others).items():
        what = "moved aside" if _FRESH.value else "kept, not run again, reported apart (--fresh runs them anew)"
        print(f"{count} finished runs are of commit {commit[:8]}, not {here[:8]}: {what}", flush=True)
    for name in others if _FRESH.value else ():
        work.move_aside(place, name)


if __name__ == "__main__":
    app.run(main)
