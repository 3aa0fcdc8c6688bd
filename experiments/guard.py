"""What a guarded learning rate is worth: rates from the tuned one to 16 times it, with and without the guard.

    python -m experiments.guard --data_dir DIR [--jobs N] [--report]

An MLP on 50,000 images of Fashion-MNIST, the other 10,000 of its training images held out; 10 epochs, a
warm-up of a tenth, linear decay to zero, no adversarial examples, in a loop of a few lines around optax. The
best rate is that without a guard, of factors of two with seed 0 (``--search``). A run that has finished is a
line of experiments/results/guard/runs.jsonl, so the command goes on where it was cut.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hessabs
from experiments import grid, table, work
from hessabs import data, models
from hessabs.training.look.results import markdown

NAME, EPOCHS, SEEDS, TRAINED = "guard", 10, (0, 1, 2), 50_000
FACTORS = (1, 4, 16)
BEST = {
    ("sgd", 128): 0.1,
    ("sgd", 2048): 0.2,
    ("sgd", 16384): 0.4,
    ("adamw", 128): 0.003,
    ("adamw", 2048): 0.024,
    ("adamw", 16384): 0.003,
    ("muon", 512): 0.005,
    ("muon", 2048): 0.01,
    ("muon", 16384): 0.08,
}
"""The best rate of a constant batch, from which the others are multiples."""

GUARDS: dict[str, dict[str, Any]] = {
    "none": {},
    "clip 1": {},  # the gradient's norm at most 1, the usual guard of SGD
    "guard 1": {"threshold": 1.0},
    "guard 2": {"threshold": 2.0},
    "guard 2, every 4th": {"threshold": 2.0, "every": 4},
}


class Point(NamedTuple):
    """An optimiser, its batch and its guard."""

    optimizer: str
    batch_size: int
    guard: str


def direction(name: str) -> optax.GradientTransformation:
    """Make an optimiser without its rate."""
    if name == "sgd":
        return optax.trace(0.9)
    return optax.scale_by_adam(0.9, 0.99) if name == "adamw" else optax.contrib.muon(-1.0, consistent_rms=0.2)


@functools.partial(jax.jit, static_argnames="point")
def train(point: Point, splits: Any, lr: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Train once; returns the share of held-out images that are told right, and the rates by update."""
    (images, labels), (held_images, held_labels) = splits
    module = models.mlp(10)
    size = point.batch_size
    updates = TRAINED // size
    total = EPOCHS * updates

    def schedule(count: Any) -> Any:
        return lr * jnp.minimum((count + 1) / (total / 10), (total - count) / (0.9 * total))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits: Any = module.apply({"params": params}, batch[0])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

    guarded = GUARDS[point.guard]
    last = (
        hessabs.guarded_learning_rate(schedule, **guarded)
        if guarded
        else optax.scale_by_learning_rate(schedule)
    )
    clip = [optax.clip_by_global_norm(1.0)] if point.guard == "clip 1" else []
    tx = optax.with_extra_args_support(optax.chain(*clip, direction(point.optimizer), last))

    def update(carry: Any, chosen: jax.Array) -> Any:
        params, state = carry
        batch = images[chosen], labels[chosen]
        gradient = jax.grad(loss_fn)(params, batch)
        steps, state = tx.update(gradient, state, params, loss_fn=loss_fn, batch=batch)
        rate = state[-1].learning_rate if guarded else schedule(state[-1].count - 1)
        return (optax.apply_updates(params, steps), state), rate

    def epoch(carry: Any, key: jax.Array) -> Any:
        order = jax.random.permutation(key, TRAINED)[: updates * size]
        return jax.lax.scan(update, carry, order.reshape(updates, size))

    params = module.init(key, images[:1])["params"]
    keys = jax.random.split(jax.random.fold_in(key, 1), EPOCHS)
    (params, _), rates = jax.lax.scan(epoch, (params, tx.init(params)), keys)
    logits: Any = module.apply({"params": params}, held_images)
    return jnp.mean(jnp.argmax(logits, -1) == held_labels), rates.ravel()


def read(data_dir: str | None) -> Any:
    """Read the images to train on and those held out, in an order that is always the same."""
    split = data.load("fashion_mnist", data_dir=data_dir).train
    order = np.random.default_rng(0).permutation(60_000)
    images = jnp.asarray(split["image"][order], jnp.float32).reshape(-1, 28, 28, 1) / 255
    labels = jnp.asarray(split["label"][order], jnp.int32)
    return (images[:TRAINED], labels[:TRAINED]), (images[TRAINED:], labels[TRAINED:])


def wanted(search: bool) -> list[tuple[str, Point, float, int]]:
    """List the runs by name: point, rate, seed."""
    runs = []
    for seed in (0,) if search else SEEDS:
        for (optimizer, size), best in BEST.items():
            for guard in ("none",) if search else GUARDS:
                if guard == "clip 1" and optimizer != "sgd":
                    continue  # they divide the gradient by its size
                if "every" in GUARDS[guard] and size != 2048:
                    continue
                for factor in (0.25, 0.5, 1, 2, 4) if search else FACTORS:
                    point, rate = Point(optimizer, size, guard), float(f"{factor * best:.3g}")
                    runs.append((f"{optimizer}-b{size}-{guard}-lr{rate:g}/seed{seed}", point, rate, seed))
    return runs


def do(options: argparse.Namespace) -> None:
    """Do the runs that are not there yet, each once, however many processes are at it."""
    results, source = grid.RESULTS / NAME, work.origin("python -m experiments.guard")
    splits = read(options.data_dir)
    for name, point, rate, seed in wanted(options.search):
        with work.locked(grid.WORKDIRS / NAME / name) as mine:
            if not mine or name in table.read(results):
                continue
            begun = time.perf_counter()
            accuracy, rates = train(point, splits, jnp.float32(rate), jax.random.key(seed))
            settings = {**point._asdict(), "lr": rate, "seed": seed, "updates": len(rates)}
            found = {"held_out_accuracy": 100 * float(accuracy), "largest_rate": float(jnp.max(rates))}
            spent = {"seconds": time.perf_counter() - begun}
            with table.changing(results) as runs:
                runs[name] = table.Run(name, {**settings, **found, **spent, **source}, [], {})
        print(f"{name}: {found['held_out_accuracy']:.2f}", flush=True)


def page(runs: Mapping[str, table.Run]) -> str:
    """Draw the page."""
    head = ["optimiser", "batch", "best rate", "guard", *(f"{factor} times the rate" for factor in FACTORS)]
    rows = [head]
    for (optimizer, size), best in BEST.items():
        for guard in GUARDS:
            cells = []
            for factor in FACTORS:
                label = f"{optimizer}-b{size}-{guard}-lr{float(f'{factor * best:.3g}'):g}"
                found = [runs[f"{label}/seed{s}"] for s in SEEDS if f"{label}/seed{s}" in runs]
                values = [run.summary["held_out_accuracy"] for run in found]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}" if values else "")
            if any(cells):
                rows.append([optimizer, f"{size:,}", f"{best:g}", guard, *cells])
    seeds = sorted({run.summary["seed"] for run in runs.values()})
    origins = sorted({(run.summary["hardware"], run.commit) for run in runs.values()})
    findings = grid.RESULTS / NAME / "FINDINGS.md"
    said = [findings.read_text()] if findings.exists() else []
    return "\n".join(
        [
            "# A guarded learning rate",
            "",
            (__doc__ or "").split("\n\n", 2)[2].replace("``", "`").strip(),
            "",
            "`python -m experiments.guard`; percent of the held-out images, mean ± standard deviation of seeds "
            f"{', '.join(map(str, seeds))}; {len(runs)} runs.",
            "",
            *markdown(rows),
            "",
            *said,
            *(f"{hardware}; commit {commit}" for hardware, commit in origins),
            "",
        ]
    )


def main() -> None:
    """Do what is not done, then write the page."""
    parser = argparse.ArgumentParser(description="What a guarded learning rate is worth.")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each single-threaded if several")
    parser.add_argument("--search", action="store_true", help="try rates around BEST without a guard, one seed")
    parser.add_argument("--report", action="store_true", help="only write the page")
    options = parser.parse_args()
    if options.jobs > 1 and not options.report:
        work.share([sys.executable, "-m", "experiments.guard", *sys.argv[1:], "--jobs=1"], options.jobs)
    elif not options.report:
        do(options)
    if not work.is_worker():
        path = grid.RESULTS / NAME / "README.md"
        path.write_text(page(table.read(path.parent)))
        print(path)


if __name__ == "__main__":
    main()
