"""Images per second by batch size: micro-batches of 128 one by one, and as many at once as the batch has.

    python experiments/benchmarks/throughput.py --data_dir DIR

writes ``throughput.md`` beside this file, ``throughput_gpu.md`` where JAX uses a GPU: for each network and
batch size whole updates are timed, data included and compilation left out, fixed and auto in turn, medians of
several; and the part of an epoch at batch 128 that waits for data.
"""

import itertools
import pathlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags

from experiments import provenance
from hessabs import models
from hessabs.data import Position, as_source
from hessabs.training import Task, assemble, fit, tasks
from hessabs.training.loop_state import start
from hessabs.training.run import Run, prepare
from hessabs.training.sizes import make_sizes
from hessabs.training.step import TrainState

_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of the prepared Fashion-MNIST", required=True)
_MICRO = flags.DEFINE_integer("micro_batch_size", 128, "examples of a micro-batch")
_SIZES = flags.DEFINE_list("sizes", [str(128 << i) for i in range(8)], "batch sizes of the perceptron")
_RESNET_SIZES = flags.DEFINE_list("resnet_sizes", ["128", "256", "512"], "batch sizes of ResNet-20")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "measurements of each, fixed and auto in turn; medians count")
_SECONDS = flags.DEFINE_float("seconds", 1.5, "seconds of each measurement, one update at least")
_OUTPUT = flags.DEFINE_string(
    "output", None, "file; default: throughput.md beside this one, on a GPU throughput_gpu.md"
)


def images_per_second(run: Run, batch_size: int) -> Iterator[float]:
    """Train on whole updates for a while, again and again; the first update compiles and is not counted."""
    state, wanted = start(run).train, batch_size // run.micro_batch_size
    read = run.read_from(Position(0, 0))
    with make_sizes(run, state) as sizes:

        def update(state: TrainState) -> TrainState:
            nonlocal read
            totals, done = run.functions.begin(state), 0
            while done < wanted:
                count = sizes.choose(wanted - done)
                batch, position = read(count)
                totals = run.functions.add(state, totals, batch, None, done)
                done += count
                if run.epoch_micro_batches - position.index < wanted:
                    read = run.read_from(Position(0, 0))
            return run.functions.finish(state, totals, 1.0)

        done = jax.block_until_ready(update(state))
        while True:
            updates, started = 0, time.perf_counter()
            while updates == 0 or time.perf_counter() - started < _SECONDS.value:
                done = jax.block_until_ready(update(done))
                updates += 1
            yield updates * batch_size / (time.perf_counter() - started)


def random_images(count: int) -> Task:
    """Images of CIFAR-10's shape, and ResNet-20."""
    rng = np.random.default_rng(0)
    split: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, count).astype(np.int32),
    }
    small = {name: array[:64] for name, array in split.items()}
    return tasks.linen(models.create("resnet20", 10), (as_source(split), as_source(small)), num_classes=10)


def rows(model: str, sizes: list[str], task: Task | None) -> list[str]:
    """Measure a network at each batch size."""
    lines = []
    for size in map(int, sizes):
        settings = {"method": "bl", "batch_size": size, "micro_batch_size": _MICRO.value, "epochs": 100}
        if task is None:
            settings |= {"dataset": "fashion_mnist", "data_dir": _DATA_DIR.value, "model": model}
        runs = []
        for kind in ("fixed", "auto"):
            parts = assemble({**settings, "micro_batch": kind}, task)
            runs.append(prepare(parts.task, parts.optimizer, parts.rule, **parts.options))
        in_turn = zip(*(images_per_second(run, size) for run in runs), strict=True)
        fixed, auto = np.median(list(itertools.islice(in_turn, _ROUNDS.value)), axis=0)
        lines.append(f"| {model} | {size:,} | {fixed:,.0f} | {auto:,.0f} | {auto / fixed:.2f} |")
        print(lines[-1])
    return lines


def waiting(data_dir: str) -> str:
    """Say which part of an epoch waits for data."""
    settings = {"dataset": "fashion_mnist", "data_dir": data_dir, "method": "bl", "epochs": 4}
    parts = assemble({**settings, "lr_decay_epochs": ()})
    result = fit(parts.task, parts.optimizer, parts.rule, **parts.options)
    records = result.records[1:]  # the first compiles
    training = [
        record["seconds_data"] / (record["seconds_data"] + record["seconds_step"]) for record in records
    ]
    whole = [
        record["seconds_data"] / sum(record[name] for name in record if name.startswith("seconds_"))
        for record in records
    ]
    return (
        f"BL, perceptron, batch 128: {100 * np.median(training):.1f} % of the seconds of steps and their data, "
        f"{100 * np.median(whole):.1f} % of all seconds, wait for data (median of {len(records)} epochs)."
    )


def main(argv: list[str]) -> None:
    """Measure and write the table."""
    del argv
    lines = [
        "# Images per second by batch size",
        "",
        f"`python experiments/benchmarks/throughput.py`; {provenance.hardware()}; jax {jax.__version__}; "
        f"commit {provenance.commit()}",
        "",
        f"fixed: micro-batches of {_MICRO.value}; auto: as many at once as the batch has. Medians of "
        f"{_ROUNDS.value} measurements in turn.",
        "",
        "| network | batch | fixed | auto | auto / fixed |",
        "|---|---|---|---|---|",
        *rows("mlp", _SIZES.value, None),
        *rows("resnet20", _RESNET_SIZES.value, random_images(max(map(int, _RESNET_SIZES.value)))),
        "",
        waiting(_DATA_DIR.value),
    ]
    default = pathlib.Path(__file__).with_name(f"throughput{provenance.platform_suffix()}.md")
    path = pathlib.Path(_OUTPUT.value or default)
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    app.run(main)
