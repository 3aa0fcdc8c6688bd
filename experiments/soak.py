"""Train for hours, kill at random, and see that nothing is lost and nothing grows.

    python experiments/soak.py --minutes 120 [--dataset fashion_mnist --data_dir DIR] [--seed 0]

Two things go on side by side:

* Short runs of ``hessabs train --resume``, each method in turn, killed (SIGKILL) at random moments up to
  ``--kills`` times and started again with the same command. When one has finished, its metrics, its summary and
  the bits of its params are compared with those of a run of the same settings that was left alone.
* One long run, saved every few seconds and never killed, whose memory, file descriptors and threads are read
  from /proc. Its growth is that from the median of the first tenth after the warm-up, a fifth of the time, to
  that of the last tenth.

Results go to experiments/results/soak. The exit status is 1 if a bit differs, a file is left over, or memory
grows by 2 % or more.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from experiments import provenance  # noqa: E402
from experiments.training import own  # noqa: E402

_MINUTES = flags.DEFINE_float("minutes", 120, "how long to go on")
_DATASET = flags.DEFINE_string("dataset", "digits", "data set of the long run")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
_KILLS = flags.DEFINE_integer("kills", 4, "most kills of a short run")
_SEED = flags.DEFINE_integer("seed", 0, "seed of methods, moments and runs")
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "results" / "soak"), "folder of the results")

METHODS = ("absa", "abs", "gg", "gns", "bl", "stability", "fb", "norm_test", "cyclical", "timer")
SHORT = {
    "dataset": "digits", "epochs": 12, "batch_size": 32, "micro_batch_size": 16, "max_batch_size": 256,
    "lr": 0.02, "patience": 1, "lr_decay_epochs": 8, "hessian_batch_size": 128, "hessian_iters": 5,
    "warmup_epochs": 2, "cycle_epochs": 4,
}  # fmt: skip
LONG = {
    "method": "absa", "epochs": 20_000, "adversarial_epochs": 20_000, "batch_size": 128,
    "max_batch_size": 4096, "lr": 0.01, "lr_decay_epochs": "", "patience": 3, "checkpoint_every": "0.2min",
}  # fmt: skip
PERIODS = ("3updates", "7updates", "150samples", "0.003min", "1epochs")
LEFT = {"checkpoints", "config.json", "curves.png", "metrics.jsonl", "params", "summary.json"}
_WARM_UP = 0.2
_MINUTES_BETWEEN_SAMPLES = 0.1
_MOST_GROWTH = 0.02


class Sample(NamedTuple):
    """What /proc says of the long run."""

    minutes: float
    megabytes: float  # resident
    descriptors: int
    threads: int


class Short(NamedTuple):
    """How a short run went that was killed."""

    method: str
    seed: int
    period: str
    kills: int
    training: int  # of the kills, those after the start-up
    same: bool
    difference: str


def main(argv: Sequence[str]) -> None:
    """Go on for --minutes, then write the results."""
    del argv
    logging.set_verbosity(logging.WARNING)
    started, draw = time.monotonic(), random.Random(_SEED.value)
    shorts: list[Short] = []
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        long = start(folder, "long", {**LONG, "dataset": _DATASET.value})

        def wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
            """Wait for a process, looking at the long run meanwhile; returns whether it ended."""
            until = time.monotonic() + seconds
            while process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
                if long.poll() is not None:
                    sys.exit("The long run ended: " + (folder / "long.log").read_text())
                minutes = (time.monotonic() - started) / 60
                if not samples or minutes - samples[-1].minutes > _MINUTES_BETWEEN_SAMPLES:
                    samples.append(look(long.pid, minutes))
            return process.poll() is not None

        while time.monotonic() < started + 60 * _MINUTES.value:
            method = METHODS[len(shorts) % len(METHODS)]
            shorts.append(soak_one(folder, method, draw, wait))
            print(shorts[-1], flush=True)
        long.send_signal(signal.SIGTERM)
        status = long.wait(600)
        metrics = folder / "long" / "metrics.jsonl"
        epochs = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        left = sorted(str(path.relative_to(folder)) for path in (folder / "tmp").rglob("*"))
        left += sorted(path.name for path in (folder / "long" / "checkpoints").glob("*tmp*"))
    record: dict[str, Any] = {
        "command": f"python experiments/soak.py --minutes {_MINUTES.value:g} --dataset {_DATASET.value} "
        f"--kills {_KILLS.value} --seed {_SEED.value}",
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "cores": len(os.sched_getaffinity(0)),
        "minutes": (time.monotonic() - started) / 60,
        "short_runs": len(shorts),
        "kills": sum(short.kills for short in shorts),
        "kills_while_training": sum(short.training for short in shorts),
        "short_runs_that_differ": [short._asdict() for short in shorts if not short.same],
        "long_run": {"dataset": _DATASET.value, "epochs": epochs, "exit_status": status, **growth(samples)},
        "files_left_over": left,
        "by_method": {m: sum(short.method == m for short in shorts) for m in METHODS},
    }
    write(pathlib.Path(_OUTPUT.value), record, samples)
    good = not record["short_runs_that_differ"] and not left and status == 128 + signal.SIGTERM
    sys.exit(0 if good and record["long_run"]["growth"] < _MOST_GROWTH else 1)


def start(folder: pathlib.Path, name: str, settings: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
    """Start ``hessabs train`` in a folder of its own, with temporary files where they can be counted."""
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT.parent),
        "TMPDIR": str(folder / "tmp"),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    settings = {**settings, "workdir": folder / name}
    if _DATA_DIR.value:
        settings["data_dir"] = _DATA_DIR.value
    command = [sys.executable, "-m", "hessabs.cli", "train", *(f"--{k}={v}" for k, v in settings.items())]
    with (folder / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def soak_one(folder: pathlib.Path, method: str, draw: random.Random, wait: Any) -> Short:
    """Train one run alone and one with kills, and compare them."""
    seed, period = draw.randrange(10**6), draw.choice(PERIODS)
    settings = {**own({**SHORT, "method": method}), "seed": seed}
    if method != "fb":
        settings.pop("warmup_epochs")
    began = time.monotonic()
    process = start(folder, "alone", settings)
    wait(process, 600)
    seconds, kills, training = time.monotonic() - began, 0, 0
    resumed = {**settings, "resume": "true", "checkpoint_every": period}
    for _ in range(draw.randint(1, _KILLS.value)):
        process = start(folder, "killed", resumed)
        if wait(process, draw.uniform(0.2, 1.0) * seconds):
            break
        training += (folder / "killed" / ".lock").exists()
        process.kill()
        process.wait()
        kills += 1
    process = start(folder, "killed", resumed)
    wait(process, 600)
    difference = compare(folder / "alone", folder / "killed") if process.returncode == 0 else log(folder)
    for name in ("alone", "killed"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / f"{name}.log").unlink(missing_ok=True)
    return Short(method, seed, period, kills, training, difference == "", difference)


def log(folder: pathlib.Path) -> str:
    """Return the end of what a run said that failed."""
    return (folder / "killed.log").read_text()[-500:]


def compare(alone: pathlib.Path, killed: pathlib.Path) -> str:
    """Say where two finished runs differ; "" if they have the same bits."""
    if lines(alone) != lines(killed):
        return "metrics.jsonl"
    if outcome(alone) != outcome(killed):
        return "summary.json"
    if params(alone) != params(killed):
        return "params"
    names = {path.name for path in killed.iterdir()}
    return "" if names <= LEFT and not list(killed.rglob("*tmp*")) else f"files: {sorted(names)}"


def lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl without the seconds."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in records]


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Read summary.json without what a process and not a run decides."""
    summary = json.loads((workdir / "summary.json").read_text())
    return {k: v for k, v in summary.items() if not k.startswith("seconds") and k != "compilations"}


def params(workdir: pathlib.Path) -> list[tuple[str, bytes]]:
    """Read the bits of the trained network."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir.absolute() / "params")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in leaves]


def look(pid: int, minutes: float) -> Sample:
    """Read the memory, the open files and the threads of a process."""
    process = pathlib.Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Sample(
        minutes, megabytes, len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))
    )


def growth(samples: Sequence[Sample]) -> dict[str, Any]:
    """Compare the first with the last tenth after the warm-up.

    Example:
      >>> flat = [Sample(i, 100.0 + (i < 20), 9, 4) for i in range(100)]
      >>> growth(flat)["growth"]
      0.0
    """
    warm = samples[int(_WARM_UP * len(samples)) :]
    tenth = max(1, len(warm) // 10)
    first, last = (statistics.median(s.megabytes for s in part) for part in (warm[:tenth], warm[-tenth:]))
    return {
        "megabytes_after_warm_up": first,
        "megabytes_at_the_end": last,
        "growth": last / first - 1,
        "most_descriptors": [max(s.descriptors for s in part) for part in (warm[:tenth], warm[-tenth:])],
        "most_threads": [max(s.threads for s in part) for part in (warm[:tenth], warm[-tenth:])],
    }


def write(output: pathlib.Path, record: dict[str, Any], samples: Sequence[Sample]) -> None:
    """Write soak.json, memory.csv and a README.md that says the same in words."""
    output.mkdir(parents=True, exist_ok=True)
    (output / "soak.json").write_text(json.dumps(record, indent=2) + "\n")
    rows = [",".join(Sample._fields), *(",".join(f"{x:.6g}" for x in sample) for sample in samples)]
    (output / "memory.csv").write_text("\n".join(rows) + "\n")
    long, differ = record["long_run"], len(record["short_runs_that_differ"])
    first, last = long["most_descriptors"]
    text = f"""# Soak

`{record["command"]}` ran for {record["minutes"]:.0f} minutes on {record["cores"]} core(s).

* {record["short_runs"]} short runs, killed {record["kills"]} times, {record["kills_while_training"]} of them
  after the start-up; {differ} ended with other bits than the same run left alone.
* One long run of {long["epochs"]} epochs: {long["megabytes_after_warm_up"]:.1f} MB resident after the warm-up,
  {long["megabytes_at_the_end"]:.1f} MB at the end, {100 * long["growth"]:+.2f} %; at most {first} open files in
  the first tenth after the warm-up and {last} in the last. On SIGTERM it ended with exit status
  {long["exit_status"]}.
* Temporary files left over: {len(record["files_left_over"])}.

Hardware: {record["hardware"]}. Commit: {record["commit"]}. Every sample: memory.csv; all numbers: soak.json.
"""
    (output / "README.md").write_text(text)


if __name__ == "__main__":
    app.run(main)
