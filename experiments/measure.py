"""Curvature of the trained networks of a grid: the numbers behind the figures of the slides.

    python experiments/measure.py fashion_mnist_mlp LABEL,LABEL,... [--data_dir DIR] [--num_examples 10000]

For one seed of each run: the top 20 Hessian eigenvalues on training and on test images, those of the last
layer's block and of single images, and the loss on both sets along the first eigenvector. They go to
curvature.json in the folder of the run; experiments/pictures.py draws them. A run that has one is
skipped.
"""

import argparse
import pathlib
import sys
from typing import Any

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))

from experiments import work  # noqa: E402
from hessabs import curvature, models, paths, trees  # noqa: E402
from hessabs.data import Dataset, Source, eval_batches, subset  # noqa: E402
from hessabs.training import Config, metrics  # noqa: E402
from hessabs.training.losses import evaluation_loss, scale_images  # noqa: E402
from hessabs.training.saving import checkpoint  # noqa: E402
from hessabs.training.setup import init_model  # noqa: E402
from hessabs.training.track import last_layer  # noqa: E402

OUTPUT = "curvature.json"
_TOP, _SINGLE, _BATCH = 20, 5, 2000
_LINE = np.linspace(-0.5, 0.5, 21)


def main() -> None:
    """Measure the runs that are named."""
    parser = argparse.ArgumentParser(description="Curvature of the trained networks of a grid.")
    parser.add_argument("config", help="the grid")
    parser.add_argument("labels", help="its runs, LABEL,LABEL,...")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--num_examples", type=int, default=10_000, help="images of each set, the first ones")
    parser.add_argument("--results", type=pathlib.Path, default=ROOT / "results", help="folder of all results")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the runs")
    options = parser.parse_args()
    for label in options.labels.split(","):
        folder = options.results / options.config / label / f"seed{options.seed}"
        summary = work.finished(folder)
        if summary is None or "diverged" in summary:
            print(f"{label}: no finished run with params, left out", flush=True)
        elif not (folder / OUTPUT).exists():
            dataset = work.load(summary["dataset"], data_dir=options.data_dir)
            metrics.write_json(folder / OUTPUT, measure(folder, summary, dataset, options.num_examples))
            print(f"{label}: {folder / OUTPUT}", flush=True)


def measure(
    folder: pathlib.Path, summary: dict[str, Any], dataset: Dataset, num_examples: int
) -> dict[str, Any]:
    """Measure one trained network.

    Args:
      folder: The folder of its run.
      summary: The summary of the run.
      dataset: Its data set.
      num_examples: Images of each set.

    Returns:
      Eigenvalues by name, largest first, their largest relative residual, and the losses along the line.
    """
    model = models.create(summary["model"], dataset.num_classes)
    like = init_model(model, Config(model=summary["model"], dataset=summary["dataset"]), dataset)
    params, model_state = checkpoint.load_params(folder, *like)
    loss_fn = evaluation_loss(model, model_state)
    start = trees.normal_like(jax.random.key(0), params)
    sets = {
        name: _batches(split, num_examples)
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    record: dict[str, Any] = {"num_examples": num_examples, "line_at": _LINE.tolist(), "residual": 0.0}

    def solve(name: str, operator: Any, v0: Any, top: int) -> Any:
        result = curvature.eigsh(operator, v0, top, rtol=1e-2, max_matvecs=200)
        record[name] = result.eigenvalues.tolist()
        if not name.startswith("image"):  # one image's Hessian has few eigenvalues that are not about 0
            record["residual"] = max(record["residual"], float(np.max(result.residuals)))
        return result

    operators = {name: curvature.dataset_hessian(loss_fn, params, batches) for name, batches in sets.items()}
    dominant = jax.tree.map(lambda x: x[0], solve("train", operators["train"], start, _TOP).eigenvectors)
    solve("test", operators["test"], start, _TOP)
    head = last_layer(params, dataset.num_classes)
    block = curvature.restrict(operators["train"], params, head)
    solve("last_layer", block, paths.partition(start, head)[0], _TOP)
    for i in range(_SINGLE):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], sets["train"][0])
        solve(f"image_{i}", curvature.hessian(loss_fn, params, one, linearize=True), start, dataset.num_classes)
    for name, batches in sets.items():
        line = curvature.landscape(loss_fn, params, batches, [dominant], [_LINE])
        record[f"line_{name}"] = line.values.tolist()
    return record


def _batches(split: Source, num_examples: int) -> list[Any]:
    first = subset(split, np.arange(min(num_examples, len(split))))
    # Padding has weight 0, so the batches would not be weighted by their examples: use whole ones alone.
    size = min(_BATCH, len(first))
    return [scale_images(batch) for batch in eval_batches(first, size) if batch["weight"].all()]


if __name__ == "__main__":
    main()
