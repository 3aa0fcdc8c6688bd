"""The trust-region attack against Carlini-Wagner and DeepFool: size of the perturbation and time per image.

    python experiments/trust_region/run.py --runs RUNS --data_dir DIR [--names bl_128,absa_640] [--seeds 0,1,2]

RUNS is what `python experiments/run.py fashion_mnist_mlp` leaves, with the trained params: RUNS/NAME/seedN.
Every attack gets the first test images, of the first run twice: the first time compiles, the second one is
timed. Writes results.json and README.md beside this file.
"""

import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from hessabs import attacks
from hessabs.attacks import outcomes
from hessabs.training.task import attack_loss
from hessabs.training.trained import load_trained
from hessabs.typing import Attack

_RUNS = flags.DEFINE_string("runs", None, "folder of the trained runs, RUNS/NAME/seedN", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
_NAMES = flags.DEFINE_list("names", ["bl_128"], "which runs")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "which seeds")
_IMAGES = flags.DEFINE_integer("images", 500, "test images")
HERE = pathlib.Path(__file__).parent
RADIUS = {"l2": 0.05, "linf": 0.002}


def menu() -> dict[tuple[str, str], Attack]:
    """Make the attacks, by norm and name."""
    made: dict[tuple[str, str], Attack] = {}
    for norm, radius in RADIUS.items():
        for adaptive in (False, True):
            for rival in ("best", "hardest"):
                name = f"trust region, {'adaptive' if adaptive else 'fixed'}, {rival}"
                options: Any = {"norm": norm, "adaptive": adaptive, "rival": rival}
                made[norm, name] = attacks.trust_region(radius, **options)
        made[norm, "DeepFool"] = attacks.deepfool(norm=norm)  # type: ignore[arg-type]
    made["l2", "Carlini-Wagner"] = attacks.carlini_wagner(steps=200, binary_search_steps=6)
    return made


def main(argv: Sequence[str]) -> None:
    """Attack every run and write the table."""
    del argv
    rows: list[dict[str, Any]] = []
    for name in _NAMES.value:
        for seed in _SEEDS.value:
            rows += measure(
                pathlib.Path(_RUNS.value) / name / f"seed{seed}", name, int(seed), compiled=bool(rows)
            )
    record = {
        "command": "python experiments/trust_region/run.py --runs RUNS --data_dir DIR "
        f"--names {','.join(_NAMES.value)} --seeds {','.join(_SEEDS.value)} --images {_IMAGES.value}",
        "hardware": provenance.hardware(),
        "commit": provenance.commit(),
        "jax": jax.__version__,
        "rows": rows,
    }
    (HERE / "results.json").write_text(json.dumps(record, indent=2) + "\n")
    (HERE / "README.md").write_text(table(record))


def measure(folder: pathlib.Path, name: str, seed: int, *, compiled: bool) -> list[dict[str, Any]]:
    """Attack one run in every way; `compiled`: another one has been, so that nothing is compiled now."""
    trained = load_trained(folder, flags={"data_dir": _DATA_DIR.value})
    loss_fn = attack_loss(trained.task, trained.model_state)
    batch = trained.task.prepare(trained.task.test.take(np.arange(_IMAGES.value)))
    rows = []
    for (norm, attack_name), attack in menu().items():
        clean = outcomes.look(loss_fn, trained.params, batch, "image", norm)  # type: ignore[arg-type]
        options: Any = {"norm": norm, "bounds": (0.0, 1.0), "inputs_key": "image"}
        if not compiled:
            outcomes.run(attack, loss_fn, trained.params, batch, None, **options)
        cpu = time.process_time()
        outcome, _ = outcomes.run(attack, loss_fn, trained.params, batch, None, **options)
        cpu = time.process_time() - cpu
        fell = clean.right & ~outcome.stands
        relative = outcome.sizes[fell] / clean.lengths[fell]
        row = {
            "run": name,
            "seed": seed,
            "norm": norm,
            "attack": attack_name,
            "clean": float(clean.right.mean()),
            "success": float(fell.sum() / clean.right.sum()),
            "mean_relative": float(relative.mean()),
            "max_relative": float(relative.max()),
            "ms_per_image": 1000 * outcome.seconds / len(clean.right),
            "cpu_ms_per_image": 1000 * cpu / len(clean.right),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def table(record: dict[str, Any]) -> str:
    """Write the results as Markdown: means over seeds, and the range of the mean size."""
    lines = [
        "# Trust region against Carlini-Wagner and DeepFool",
        "",
        f"`{record['command']}`; RUNS as `python experiments/run.py fashion_mnist_mlp` leaves it (MLP "
        f"784-256-256-10, 90 epochs). {record['hardware']}; jax {record['jax']}; commit {record['commit']}.",
        "",
        "Success among the images that were classified rightly; the relative size is `||x' - x|| / ||x||` in "
        "the norm named, over those that fell. Radius of the trust region (to begin with, where it adapts): "
        f"{RADIUS['l2']} in L2, {RADIUS['linf']} in L-infinity. Carlini-Wagner: 200 steps, 6 weights. Means "
        "over seeds, the range of seeds for the mean size; CPU milliseconds are those of all threads, which "
        "other programs on the machine change less than the clock's.",
        "",
        "| run | norm | attack | success % | mean size % (range) | max size % | ms per image | CPU ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        groups.setdefault((row["run"], row["norm"], row["attack"]), []).append(row)
    for key, rows in groups.items():
        mean = {
            column: float(np.mean([row[column] for row in rows]))
            for column in ("success", "mean_relative", "max_relative", "ms_per_image", "cpu_ms_per_image")
        }
        sizes = [100 * row["mean_relative"] for row in rows]
        lines.append(
            f"| {' | '.join(key)} | {100 * mean['success']:.1f} "
            f"| {100 * mean['mean_relative']:.2f} ({min(sizes):.2f} to {max(sizes):.2f}) "
            f"| {100 * mean['max_relative']:.1f} | {mean['ms_per_image']:.2f} "
            f"| {mean['cpu_ms_per_image']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app.run(main)
