"""One run of a grid: locked while it is at work, never done twice, and whole or not there at all.

Any number of processes may work on one grid. Each run has a folder; one that holds a summary is finished. A
process that dies gives its lock back, and the run that it was at goes on from its last checkpoint, if it is the
same commit that goes on; else it starts anew.
"""

import contextlib
import fcntl
import functools
import json
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

from experiments import provenance
from hessabs import data
from hessabs.training import Config, metrics, set_up, train
from hessabs.training.saving.durability import Durability

LOCK = "run.lock"
CHECKPOINT_EVERY = "5min"
STARTED = "started.json"  # by what, until the run is finished

load = functools.cache(data.load)  # decoding takes longer than an epoch of the MLP


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[bool]:
    """Hold the lock of a run; yields whether it could be had."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def finished(folder: pathlib.Path) -> dict[str, Any] | None:
    """Read the summary of a finished run; None if it is not finished."""
    path = folder / metrics.SUMMARY
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return summary if "commit" in summary else None  # without one, the run was cut off between two writes


def origin(command: str) -> dict[str, str]:
    """Say where the numbers of this process come from; to be asked once, of the code that has been loaded."""
    return {"command": command, "commit": provenance.commit(), "hardware": provenance.hardware()}


def do(
    folder: pathlib.Path, config: Config, source: dict[str, str], data_dir: str | None
) -> dict[str, Any] | None:
    """Do one run, unless it is finished or another process is at it.

    A run whose loss stops being finite is finished too: it is recorded as diverged, with chance accuracy.

    Args:
      folder: The folder of the run.
      config: Its settings.
      source: The ``origin`` of the process, for the record.
      data_dir: The folder of prepared data sets; it is not recorded, for it says nothing about the result.

    Returns:
      The summary of a run that this call has done, else None.
    """
    with locked(folder) as mine:
        if not mine or finished(folder) is not None:
            return None
        dataset = load(
            config.dataset, data_dir=data_dir, train_split=config.train_split, image_size=config.image_size
        )
        resumed = _goes_on(folder, source)
        metrics.write_json(folder / STARTED, source)
        started, busy = time.perf_counter(), time.process_time()
        run = set_up(config, dataset)
        try:
            options = Durability(resume=resumed, checkpoint_every=CHECKPOINT_EVERY, keep_checkpoints=1)
            summary = train(run, folder, options).summary
        except FloatingPointError as error:
            summary = _diverged(folder, run.config, str(error), dataset.num_classes)
            summary["seconds"] = time.perf_counter() - started
        if not resumed:  # the time of an earlier process is not known
            summary["seconds_cpu"] = time.process_time() - busy
        summary = {**summary, **source}
        summary.pop("data_dir", None)
        metrics.write_json(folder / metrics.SUMMARY, summary)
        shutil.rmtree(folder / metrics.CHECKPOINTS, ignore_errors=True)
        (folder / STARTED).unlink()
        return summary


def _goes_on(folder: pathlib.Path, source: dict[str, str]) -> bool:
    path = folder / STARTED
    return path.exists() and json.loads(path.read_text())["commit"] == source["commit"]


def _diverged(folder: pathlib.Path, config: Config, reason: str, num_classes: int) -> dict[str, Any]:
    lines = metrics.read_lines(folder / metrics.METRICS) if (folder / metrics.METRICS).exists() else []
    last = lines[-1] if lines else {"updates": 0, "samples": 0, "batch_size": config.batch_size}
    chance = 100 / num_classes
    attacked = {"fgsm_accuracy": chance} | ({"pgd_accuracy": chance} if config.pgd_steps else {})
    return {
        **config._asdict(),
        "diverged": reason,
        "updates": last["updates"],  # at the end of the last whole epoch
        "samples": last["samples"],
        "test_accuracy": chance,
        **attacked,
        "final_batch_size": last["batch_size"],
        "eigenvalue": None,
    }


def move_aside(results: pathlib.Path, name: str, commit: str) -> None:
    """Move a run of another commit to LABEL@COMMIT, so that its place is free.

    Args:
      results: The folder of the grid.
      name: LABEL/seedN.
      commit: The commit that made it.
    """
    label, _, seed = name.rpartition("/")
    aside = results / f"{label}@{commit[:8]}" / seed
    with locked(results / name) as mine:
        if mine and not aside.exists():
            aside.parent.mkdir(parents=True, exist_ok=True)
            (results / name).rename(aside)


def line(name: str, summary: dict[str, Any]) -> str:
    """Say in one line how a run went."""
    if "diverged" in summary:
        return f"{name}: diverged; {summary['diverged']}"
    return (
        f"{name}: {summary['test_accuracy']:.2f} % right, {summary['fgsm_accuracy']:.2f} % under FGSM, "
        f"{summary['updates']:,} updates, eigenvalue {summary['eigenvalue']:.2f}, {summary['seconds']:.0f} s"
    )
