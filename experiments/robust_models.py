"""Attack each network of the config robust_models in each way, and measure its Hessian.

    python experiments/robust_models.py [--data_dir DIR] [--num_examples 2000]

For each finished run: the accuracy on the first test images under every attack, L-infinity at 0.02 and L2 at
0.5, and the top 20 eigenvalues of the Hessian on as many training images. They go to robustness.json in the
folder of the run; one that is there is kept. Then models.md, models.csv and models.png beside the runs, over
the seeds that have finished.
"""

import csv
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from experiments import grid, provenance, work  # noqa: E402
from hessabs import attacks, curvature, models, trees  # noqa: E402
from hessabs.attacks import losses  # noqa: E402
from hessabs.attacks.norms import Norm  # noqa: E402
from hessabs.data import Dataset, Source  # noqa: E402
from hessabs.training import metrics  # noqa: E402
from hessabs.training.losses import evaluation_logits, evaluation_loss, scale_images  # noqa: E402
from hessabs.training.saving import checkpoint  # noqa: E402
from hessabs.training.setup import init_model  # noqa: E402
from hessabs.typing import Attack  # noqa: E402

NAME, OUTPUT = "robust_models", "robustness.json"
LINF, L2 = 0.02, 0.5
ATTACKS: dict[Norm, tuple[float, dict[str, Callable[[float], Attack]]]] = {
    "linf": (LINF, {"fgsm": attacks.fgsm, "fgsm_10": attacks.bim, "fhsm": attacks.fhsm, "pgd": attacks.pgd}),
    "l2": (L2, {"l2grad": attacks.l2grad, "l2hess": attacks.l2hess}),
}
COLUMNS = ("clean", *(name for _, named in ATTACKS.values() for name in named))
_TOP = 20

_DATA_DIR = flags.DEFINE_string("data_dir", None, "folder of prepared TFDS data sets")
_NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 2000, "images of each set, the first ones", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", str(ROOT / "results"), "folder of all results")


def main(argv: Sequence[str]) -> None:
    """Attack the runs that have finished, then write the tables."""
    logging.set_verbosity(logging.WARNING)
    if len(argv) != 1:
        sys.exit("experiments/robust_models.py takes no arguments but flags.")
    results = pathlib.Path(_RESULTS.value) / NAME
    found: dict[str, list[dict[str, Any]]] = {}
    for run in grid.load(grid.find([NAME])).runs:
        folder = results / run
        summary = work.finished(folder)
        if summary is None:
            continue
        if not (folder / OUTPUT).exists():
            if not (folder / metrics.PARAMS).exists():
                print(f"{run}: its params are gone, left out", flush=True)
                continue
            dataset = work.load(summary["dataset"], data_dir=_DATA_DIR.value)
            metrics.write_json(folder / OUTPUT, measure(folder, summary, dataset, _NUM_EXAMPLES.value))
            print(run, flush=True)
        found.setdefault(run.rpartition("/")[0], []).append(json.loads((folder / OUTPUT).read_text()))
    if not found:
        sys.exit(f"no finished run in {results}: python experiments/run.py {NAME}")
    write(results, found)


def measure(
    folder: pathlib.Path, summary: dict[str, Any], dataset: Dataset, num_examples: int
) -> dict[str, Any]:
    """Attack one network and measure its Hessian.

    Args:
      folder: The folder of its run.
      summary: What the run left.
      dataset: The images.
      num_examples: How many of each split, the first ones.

    Returns:
      ``{"accuracy": by attack in percent, "eigenvalues": descending, ...}``.
    """
    config = grid.settings(str(folder), {"dataset": summary["dataset"], "model": summary["model"]})
    model = models.create(config.model, dataset.num_classes)
    params, state = checkpoint.load_params(folder, *init_model(model, config, dataset))
    test, train = (_batch(split, num_examples) for split in (dataset.test, dataset.train))
    loss_fn = losses.cross_entropy(evaluation_logits(model, state))
    accuracy: dict[str, float] = {}
    for norm, (epsilon, named) in ATTACKS.items():
        rows = attacks.evaluate(loss_fn, params, test, named, [epsilon], jax.random.key(0), norm=norm)
        accuracy |= {row.attack: 100 * row.accuracy for row in rows if row.attack in COLUMNS}
    operator = curvature.hessian(evaluation_loss(model, state), params, train, linearize=True)
    spectrum = curvature.eigsh(operator, trees.normal_like(jax.random.key(0), params), k=_TOP, rtol=1e-2)
    return {
        "accuracy": accuracy,
        "eigenvalues": [float(value) for value in spectrum.eigenvalues],
        "residuals": [float(value) for value in spectrum.residuals],
        "num_examples": num_examples,
        "seed": summary["seed"],
        "trained_at": summary["commit"],
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
    }


def _batch(split: Source, num_examples: int) -> dict[str, Any]:
    batch = split.take(np.arange(min(num_examples, len(split))))
    return dict(jax.jit(scale_images)({**batch, "weight": jnp.ones(len(batch["label"]))}))


def write(results: pathlib.Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Write models.md, models.csv and models.png.

    Args:
      results: The folder of the grid.
      found: The measurements of each model, by seed.
    """
    first = next(iter(found.values()))[0]
    lines = [
        "# Robust models under each attack (Fashion-MNIST, MLP)",
        "",
        f"Accuracy in percent on the first {first['num_examples']:,} test images, mean and deviation over",
        f"the seeds given; L-infinity attacks (FGSM, FGSM-10, FHSM, PGD of 40 steps) at {LINF}, L2 attacks",
        f"(L2GRAD, L2HESS) at {L2}. Eigenvalues 1 and 20 of the Hessian on as many training images.",
        "",
        "| trained with | seeds | " + " | ".join(COLUMNS) + " | eigenvalue 1 | eigenvalue 20 |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    table = []
    for label, rows in found.items():
        values = {name: [row["accuracy"][name] for row in rows] for name in COLUMNS}
        values |= {f"eigenvalue {i}": [row["eigenvalues"][i - 1] for row in rows] for i in (1, _TOP)}
        cells = [label, ", ".join(str(row["seed"]) for row in rows), *map(_cell, values.values())]
        lines.append("| " + " | ".join(cells) + " |")
        table += [
            {"model": label, "seed": row["seed"], **row["accuracy"]}
            | {f"eigenvalue_{i}": value for i, value in enumerate(row["eigenvalues"], start=1)}
            for row in rows
        ]
    every = [row for rows in found.values() for row in rows]
    for field in ("trained_at", "commit", "hardware"):
        lines += ["", f"{field}: " + ", ".join(sorted({row[field] for row in every}))]
    lines += ["", "![models](models.png)", ""]
    (results / "models.md").write_text("\n".join(lines))
    with (results / "models.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    draw(results / "models.png", found)
    print("\n".join(lines))


def _cell(values: Sequence[float]) -> str:
    cell = f"{statistics.mean(values):.2f}"
    return cell + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def draw(path: pathlib.Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """Draw accuracies by model and attack, and the spectra, means over seeds.

    Args:
      path: The PNG file to write.
      found: The measurements of each model, by seed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    means = [
        [statistics.mean(row["accuracy"][name] for row in rows) for name in COLUMNS] for rows in found.values()
    ]
    image = left.imshow(means, cmap="viridis", aspect="auto")
    left.set_xticks(range(len(COLUMNS)), COLUMNS, rotation=30)
    left.set_yticks(range(len(found)), list(found))
    for i, row in enumerate(means):
        for j, value in enumerate(row):
            left.text(j, i, f"{value:.1f}", ha="center", va="center", color="w", fontsize=8)
    left.set_title("accuracy (%) by training (rows) and attack (columns)")
    figure.colorbar(image, ax=left)
    for number, (label, rows) in enumerate(found.items()):
        spectrum = [
            statistics.mean(values) for values in zip(*(row["eigenvalues"] for row in rows), strict=True)
        ]
        style = {"color": "k", "linewidth": 2.5} if label == "plain" else {"color": f"C{number - 1}"}
        right.plot(range(1, _TOP + 1), spectrum, marker=".", label=label, **style)
    right.set_yscale("log")
    right.set_xlabel("number")
    right.set_title(f"top {_TOP} Hessian eigenvalues")
    right.grid(alpha=0.3)
    right.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    app.run(main)
