"""One run of a grid: locked while it is at work, never done twice, and whole in the table or not at all.

Any number of processes may work on one grid. A run is at work in a folder of its own outside the results, and
is finished when its line is in the table (``experiments/table.py``). A process that dies gives its lock back,
and the run that it was at goes on from its last checkpoint, if the commit is the same; else it starts anew.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import provenance, table, training

LOCK = "run.lock"
_WORKER = "HESSABS_GRID_WORKER"  # in the environment of a process that shares a grid with others
STARTED = "started.json"  # by what, until the run is finished


class Place(NamedTuple):
    """Where the runs of a grid are kept."""

    results: pathlib.Path  # the folder of the table
    workdirs: pathlib.Path  # the folder of LABEL/seedN: checkpoints, the trained params


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[bool]:
    """Hold the lock of a run; yields whether it could be had."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def origin(command: str) -> dict[str, str]:
    """Say where the numbers of this process come from; to be asked once, of the code that has been loaded."""
    return {"command": command, "commit": provenance.commit(), "hardware": provenance.hardware()}


def do(
    place: Place, name: str, settings: Mapping[str, Any], source: dict[str, str], data_dir: str | None = None
) -> table.Run | None:
    """Do a run and add it to the table, unless it is finished or another process is at it; then return None."""
    workdir = place.workdirs / name
    with locked(workdir) as mine:
        if not mine or name in table.read(place.results):
            return None
        started = workdir / STARTED
        resume = started.exists() and json.loads(started.read_text())["commit"] == source["commit"]
        started.write_text(json.dumps(source))
        busy = time.process_time()
        summary, records = training.train_one(settings, workdir, data_dir=data_dir, resume=resume)
        if not resume:  # the time of an earlier process is not known
            summary = {**summary, "seconds_cpu": time.process_time() - busy}
        with table.changing(place.results) as runs:
            runs[name] = table.Run(name, {**summary, **source}, records, {})
        started.unlink()
        return table.read(place.results)[name]


def share(command: Sequence[str], jobs: int) -> None:
    """Let several processes of one thread each work on a grid, and wait; exits where one fails."""
    environment = {
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # an accelerator has to hold all of them
        **os.environ,
        _WORKER: "1",
    }
    workers = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
    failed = sum(worker.wait() != 0 for worker in workers)
    if failed:
        sys.exit(f"{failed} of {jobs} processes failed; run again to continue.")


def is_worker() -> bool:
    """Tell whether this process shares a grid with others."""
    return _WORKER in os.environ


def move_aside(place: Place, name: str) -> None:
    """Rename a finished run to LABEL@COMMIT/seedN, in the table and among the workdirs, to make room."""
    with locked(place.workdirs / name) as mine, table.changing(place.results) as runs:
        label, _, seed = name.rpartition("/")
        aside = f"{label}@{runs[name].commit[:8]}/{seed}"
        if mine and aside not in runs:
            runs[aside] = runs.pop(name)._replace(name=aside)
            (place.workdirs / aside).parent.mkdir(parents=True, exist_ok=True)
            (place.workdirs / name).rename(place.workdirs / aside)


def line(run: table.Run) -> str:
    """Say in one line how a run went."""
    summary = run.summary
    if "diverged" in summary:
        return f"{run.name}: diverged; {summary['diverged']}"
    result = f"loss {summary['test_loss']:.4f}"
    if "test_accuracy" in summary:
        result = f"{summary['test_accuracy']:.2f} % right, {summary['fgsm_accuracy']:.2f} % under FGSM"
    return (
        f"{run.name}: {result}, {summary['updates']:,} updates, eigenvalue {summary['eigenvalue']:.2f}, "
        f"{summary['seconds']:.0f} s"
    )
