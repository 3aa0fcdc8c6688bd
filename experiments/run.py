"""Run the grid of a config, and build its table and pictures from what has finished.

    python experiments/run.py CONFIG [--data_dir DIR] [--jobs N] [--only LABEL,...] [--seeds N,...]
        [--smoke] [--report_only]

CONFIG is a file of experiments/configs, or the path of another. Each run has a folder of
experiments/results/CONFIG; one that holds a summary is finished and skipped, so an interrupted grid
continues where it stopped, a run that was cut off at its last checkpoint. Several processes may work on one
grid, here (--jobs) or started by hand: each run is locked by the one that is at it. Runs of another commit
are kept and reported apart; --fresh moves them aside and runs anew. With --smoke, two epochs of the first
seed, in a folder of their own.
"""

import collections
import fnmatch
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
_JOBS = flags.DEFINE_integer("jobs", 1, "processes, each single-threaded if there are several", lower_bound=1)
_ONLY = flags.DEFINE_list("only", [], "run only these labels; * stands for anything")
_SEEDS = flags.DEFINE_list("seeds", [], "run only these seeds")
_SMOKE = flags.DEFINE_bool("smoke", False, "two epochs of the first seed")
_REPORT_ONLY = flags.DEFINE_bool("report_only", False, "run nothing, build the table and the pictures")
_FRESH = flags.DEFINE_bool("fresh", False, "move runs of other commits aside, to LABEL@COMMIT, and run anew")
_RESULTS = flags.DEFINE_string("results", str(ROOT / "results"), "folder of all results")


def main(argv: Sequence[str]) -> None:
    """Run a config given by name."""
    logging.set_verbosity(logging.WARNING)
    from experiments import grid, report

    try:
        this = grid.load(grid.find(argv[1:]))
    except ValueError as error:
        sys.exit(f"experiments/run.py: {error}")
    results = pathlib.Path(_RESULTS.value) / (this.name + ("_smoke" if _SMOKE.value else ""))
    if _SMOKE.value:
        first = next(iter(this.runs.values())).seed
        this = this._replace(
            runs={name: run._replace(epochs=2) for name, run in this.runs.items() if run.seed == first}
        )
    if not _REPORT_ONLY.value:
        wanted = [name for name in this.runs if _is_wanted(*name.rsplit("/seed", 1))]
        _look_at_other_commits(results, wanted)
        if _JOBS.value > 1:
            _share()
        else:
            _work({name: this.runs[name] for name in wanted}, results, this.name)
    if "HESSABS_GRID_WORKER" not in os.environ:
        print(report.write(results, this))


def _is_wanted(label: str, seed: str) -> bool:
    wanted = not _ONLY.value or any(fnmatch.fnmatch(label, pattern) for pattern in _ONLY.value)
    return wanted and (not _SEEDS.value or seed in _SEEDS.value)


def _look_at_other_commits(results: pathlib.Path, names: Sequence[str]) -> None:
    from experiments import provenance, work

    here = provenance.commit()
    others: collections.Counter[str] = collections.Counter()
    for name in names:
        summary = work.finished(results / name)
        if summary is not None and summary["commit"] != here:
            others[summary["commit"]] += 1
            if _FRESH.value:
                work.move_aside(results, name, summary["commit"])
    for commit, count in others.items():
        what = "moved aside" if _FRESH.value else "kept, not run again, reported apart (--fresh runs them anew)"
        print(f"{count} finished runs are of commit {commit[:8]}, not {here[:8]}: {what}", flush=True)


def _share() -> None:
    environment = {
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # an accelerator has to hold all of them
        **os.environ,
        "HESSABS_GRID_WORKER": "1",
    }
    command = [sys.executable, *sys.argv, "--jobs=1", "--nofresh"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(_JOBS.value)]
    failed = sum(worker.wait() != 0 for worker in workers)
    if failed:
        sys.exit(f"experiments/run.py: {failed} of {len(workers)} processes failed; run again to continue.")


def _work(runs: dict[str, Any], results: pathlib.Path, config_name: str) -> None:
    from experiments import work

    source = work.origin(f"python experiments/run.py {config_name}")
    for name, config in runs.items():
        summary = work.do(results / name, config, source, _DATA_DIR.value)
        if summary is not None:
            print(work.line(name, summary), flush=True)


if __name__ == "__main__":
    app.run(main)
