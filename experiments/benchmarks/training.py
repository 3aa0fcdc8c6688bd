"""Speed of the training loop: against a plain JAX loop, and the share of the eigenvalue measurements.

    python experiments/benchmarks/training.py [--rounds 7] [--data_dir DIR]

Writes training.md beside this file, training_gpu.md where JAX uses a GPU. Throughput: BL through the library's
loop against a hand-written jitted step over the same micro-batches, in turn in one process, medians of the
rounds; random images in the shape of the data set. Share: a whole ABSA run on Fashion-MNIST with 128 images per
measurement, if --data_dir holds it.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from hessabs import models
from hessabs.data import as_source, micro_batches
from hessabs.training import assemble, fit, tasks
from hessabs.training.loop import train
from hessabs.training.run import Run, prepare
from hessabs.training.step import init_state

_ROUNDS = flags.DEFINE_integer("rounds", 7, "pairs of timed epochs")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder with Fashion-MNIST as TFDS prepares it")

CASES = {
    "mlp, 28x28x1": ("mlp", (28, 28, 1), 40_960),
    "resnet20, 32x32x3": ("resnet20", (32, 32, 3), 1_280),
}


def main(argv: Sequence[str]) -> None:
    """Measure and write the table."""
    del argv
    lines = [
        "# Speed of the training loop",
        "",
        f"`python experiments/benchmarks/training.py --rounds {_ROUNDS.value}`; {provenance.hardware()}; "
        f"jax {jax.__version__}; commit {provenance.commit()}",
        "",
        "BL, micro-batches of 128, images per second, median of the rounds, the two in turn in one process:",
        "",
        "| network | plain JAX loop | hessabs | ratio (median of pairs) |",
        "|---|---|---|---|",
    ]
    for title, case in CASES.items():
        plain, library = throughput(*case)
        ratio = statistics.median(b / a for a, b in zip(plain, library, strict=True))
        lines.append(
            f"| {title} | {statistics.median(plain):,.0f} | {statistics.median(library):,.0f} | {ratio:.3f} |"
        )
        print(lines[-1], flush=True)
    if _DATA_DIR.value:
        lines += ["", *hessian_share(_DATA_DIR.value)]
    pathlib.Path(__file__).with_name(f"training{provenance.platform_suffix()}.md").write_text(
        "\n".join(lines) + "\n"
    )
    print("\n".join(lines))


def throughput(model_name: str, shape: tuple[int, ...], num_examples: int) -> tuple[list[float], list[float]]:
    """Measure images per second of a plain loop and of the library, in turn."""
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "image": rng.integers(0, 256, (num_examples, *shape), dtype=np.uint8),
        "label": rng.integers(0, 10, num_examples, dtype=np.int32),
    }
    small = {name: array[:128] for name, array in arrays.items()}
    task = tasks.linen(models.create(model_name, 10), (as_source(arrays), as_source(small)), num_classes=10)
    settings = {"method": "bl", "epochs": 1, "lr": 0.01, "hessian_batch_size": 16, "lr_decay_epochs": ()}
    parts = assemble(settings, task)
    run = prepare(parts.task, parts.optimizer, parts.rule, **parts.options)
    plain_epoch = make_plain_epoch(model_name, run, arrays)
    plain, library = [], []
    for round_number in range(_ROUNDS.value + 1):  # the first compiles
        seconds = plain_epoch()
        record = library_epoch(run)
        if round_number:
            plain.append(num_examples / seconds)
            library.append(num_examples / (record["seconds_step"] + record["seconds_data"]))
    return plain, library


def library_epoch(run: Run) -> dict[str, Any]:
    """Train an epoch with the functions that are compiled already; return its record."""
    state = init_state(run.task, run.optimizer, jax.random.key(0), (), average=False)
    return train(run._replace(state=state)).records[0]


def make_plain_epoch(model_name: str, run: Run, arrays: dict[str, np.ndarray]) -> Callable[[], float]:
    """Write the loop that somebody without the library would write."""
    model = models.create(model_name, 10)
    optimizer = optax.sgd(0.01, momentum=0.9)

    def loss_fn(params: Any, model_state: Any, batch: Any) -> Any:
        image = batch["image"].astype(jnp.float32) / 255
        variables = {"params": params, **model_state}
        logits, new = model.apply(variables, image, train=True, mutable=list(model_state))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.mean(losses), dict(new)

    def step(params: Any, model_state: Any, opt_state: Any, batch: Any) -> Any:
        gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, model_state), gradient = gradient_fn(params, model_state, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), model_state, opt_state, loss

    jitted_step = jax.jit(step, donate_argnums=(0, 1, 2))

    def epoch() -> float:
        params, model_state = jax.jit(run.task.init)(jax.random.key(0))
        state = (params, model_state, optimizer.init(params))
        jax.block_until_ready(state)
        start = time.perf_counter()
        stream = micro_batches(arrays, 128, seed=0)
        for _ in range(len(arrays["label"]) // 128):
            batch, _ = next(stream)
            *state, _ = jitted_step(*state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return epoch


def hessian_share(data_dir: str) -> list[str]:
    """Train ABSA in full and tell which part of the seconds the measurements took."""
    settings = {"dataset": "fashion_mnist", "data_dir": data_dir, "max_batch_size": 4096, "epsilon": 0.02}
    parts = assemble({**settings, "hessian_batch_size": 128})
    result = fit(parts.task, parts.optimizer, parts.rule, **parts.options)
    summary = result.summary
    measured = [record for record in result.records if record["seconds_hessian"] > 0]
    share = 100 * summary["seconds_hessian"] / summary["seconds"]
    after = sum(record["seconds_hessian"] for record in measured[1:])
    return [
        "ABSA, MLP on Fashion-MNIST, 90 epochs, largest batch 4,096, eigenvalue from 128 images, each "
        "measurement started from the last eigenvector:",
        "",
        "| measurements | seconds in them | of the run's seconds | share | without the first (compilation) |",
        "|---|---|---|---|---|",
        f"| {len(measured)} | {summary['seconds_hessian']:.2f} | {summary['seconds']:.1f} | {share:.1f} % | "
        f"{100 * after / summary['seconds']:.1f} % |",
    ]


if __name__ == "__main__":
    app.run(main)
