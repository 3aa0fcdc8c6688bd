"""``ensemble`` beside AutoAttack (torchattacks' standard version), on the same weights and images.

    python experiments/benchmarks/autoattack.py --data_dir DIR [--networks mlp,cnn] [--images 500] [--rounds 1]

Fashion-MNIST, L-infinity 0.05, the networks of ``attacks.py``; robust accuracy, time, and passes of single
images through the network, forward alone or with the gradient. Needs what ``attacks.py`` needs, and writes
autoattack.json and autoattack.md beside this file.
"""

import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from experiments.benchmarks import attacks as speed
from hessabs import attacks, data, models
from hessabs.attacks import losses
from hessabs.training.look.results import markdown

_IMAGES = flags.DEFINE_integer("images", 500, "how many test images")
_KEPT = pathlib.Path(__file__).with_suffix(".json")


def main(argv: Sequence[str]) -> None:
    """Measure, add to the numbers that are there, and write the table."""
    del argv
    dataset = data.load("fashion_mnist", data_dir=flags.FLAGS.data_dir)
    record = json.loads(_KEPT.read_text()) if _KEPT.exists() else {}
    image = dataset.test["image"][: _IMAGES.value].astype(np.float32) / 255
    label = dataset.test["label"][: _IMAGES.value].astype(np.int32)
    for name in flags.FLAGS.networks:
        model: Any = models.mlp() if name == "mlp" else speed.CNN()
        variables = speed.train(model, dataset)
        rows = {"hessabs": ours(model.apply, variables, image, label)}
        rows |= speed.peers(name, variables, image, label)
        for row in rows.values():
            row |= {"commit": provenance.commit(), "images": _IMAGES.value}
        record[name] = rows
        _KEPT.write_text(json.dumps(record, indent=1) + "\n")
        _KEPT.with_suffix(".md").write_text(table(record))
    print(table(record))


def ours(logits_fn: Any, variables: Any, image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Time the ensemble; the first run compiles, and another one counts."""
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label)}
    attack = attacks.ensemble(speed.SETTING["epsilon"])
    passes = 0

    def add(count: int) -> None:
        nonlocal passes
        passes += int(count)

    def counted(variables: Any, images: jax.Array) -> jax.Array:
        jax.debug.callback(add, len(images))
        found: jax.Array = logits_fn(variables, images)
        return found

    def run(logits_fn: Any) -> float:
        loss_fn = losses.cross_entropy(logits_fn)
        got = attack(loss_fn, variables, batch, jax.random.key(0))
        return float((~np.asarray(losses.per_example(loss_fn, variables, got, "image")[1])).mean())

    timings, accuracy = [], 0.0
    for _ in range(flags.FLAGS.rounds + 1):
        start, cpu = time.perf_counter(), time.process_time()
        accuracy = run(logits_fn)
        timings.append((time.perf_counter() - start, time.process_time() - cpu))
    run(counted)
    jax.effects_barrier()
    return {
        "first": timings[0][0],
        "seconds": [wall for wall, _ in timings[1:]],
        "cpu": [cpu for _, cpu in timings[1:]],
        "accuracy": accuracy,
        "passes": passes,
        "version": f"jax {jax.__version__}",
        "load": os.getloadavg()[0],
    }


def table(record: dict[str, Any]) -> str:
    """Write the numbers as Markdown."""
    titles = "network, images, who, robust accuracy %, seconds, CPU s, passes an image, rounds, load, commit"
    lines = [titles.split(", ")]
    for network, rows in record.items():
        for who, row in rows.items():
            first = f" (first run {row['first']:.1f})" if "first" in row else ""
            seconds, cpu = (statistics.median(row[key]) for key in ("seconds", "cpu"))
            lines.append(
                [
                    *(network, str(row["images"]), f"{who} ({row['version']})", f"{100 * row['accuracy']:.1f}"),
                    *(f"{seconds:.1f}{first}", f"{cpu:.1f}", f"{row['passes'] / row['images']:,.0f}"),
                    *(str(len(row["seconds"])), f"{row['load']:.1f}", row["commit"][:7]),
                ]
            )
    text = [
        "# The ensemble beside AutoAttack",
        "",
        f"L-infinity {speed.SETTING['epsilon']}, test images of Fashion-MNIST, defaults of both; medians of the"
        " rounds, compilation apart; a pass is one image through the network, with its gradient or without.",
        "",
        f"`python experiments/benchmarks/autoattack.py --data_dir DIR`; {provenance.hardware()}.",
        "",
        *markdown(lines),
        "",
    ]
    return "\n".join(text)


if __name__ == "__main__":
    flags.FLAGS.set_default("peers", ["autoattack"])
    flags.FLAGS.set_default("rounds", 1)
    app.run(main)
