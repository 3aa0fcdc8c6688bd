"""Curvature and robustness of the trained networks of a grid: the numbers behind the figures of the slides.

    python experiments/measure.py CONFIG LABEL,... [--what curvature|robustness] [--data_dir DIR]
        [--num_examples 10000] [--seed SEED]

Of each finished run that is named (* stands for anything) and whose params are in its folder of runs/CONFIG:

* curvature: the top 20 Hessian eigenvalues on training and on test images, those of the last layer's block and
  of single images, and the loss on both sets along the first eigenvector;
* robustness: the accuracy on test images under every attack, L-infinity at 0.02 and L2 at 0.5, and the top 20
  eigenvalues of the Hessian on as many training images.

They go to the line of the run in the table of the grid; what is there is kept. Then the README and the pictures
of the grid are made anew.
"""

import argparse
import fnmatch
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from experiments import grid, provenance, report, table, training
from hessabs import attacks, curvature, paths, trees
from hessabs.attacks.norms import Norm
from hessabs.typing import Attack

LINF, L2 = 0.02, 0.5
ATTACKS: dict[Norm, tuple[float, dict[str, Callable[[float], Attack]]]] = {
    "linf": (LINF, {"fgsm": attacks.fgsm, "fgsm_10": attacks.bim, "fhsm": attacks.fhsm, "pgd": attacks.pgd}),
    "l2": (L2, {"l2grad": attacks.l2grad, "l2hess": attacks.l2hess}),
}
_TOP, _SINGLE, _BATCH = 20, 5, 2000
_LINE = np.linspace(-0.5, 0.5, 21)


def main() -> None:
    """Measure the runs that are named."""
    parser = argparse.ArgumentParser(description="Curvature and robustness of the trained networks of a grid.")
    parser.add_argument("config", help="the grid")
    parser.add_argument("labels", help="its runs, LABEL,LABEL,...; * stands for anything")
    parser.add_argument("--what", choices=MEASUREMENTS, default="curvature")
    parser.add_argument("--data_dir", help="folder of prepared TFDS data sets")
    parser.add_argument("--num_examples", type=int, default=10_000, help="images of each set, the first ones")
    parser.add_argument("--results", type=pathlib.Path, default=grid.RESULTS, help="folder of all tables")
    parser.add_argument("--workdirs", type=pathlib.Path, default=grid.WORKDIRS, help="folder of all params")
    parser.add_argument("--seed", type=int, help="the seed of the runs; default: all")
    options = parser.parse_args()
    this = grid.load(grid.find([options.config]))
    results, workdirs = options.results / this.name, options.workdirs / this.name
    for name, run in table.read(results).items():
        is_named = any(fnmatch.fnmatch(run.label, label) for label in options.labels.split(","))
        if not is_named or options.seed not in (None, run.summary["seed"]):
            continue
        if options.what in run.measured or "diverged" in run.summary:
            continue
        try:
            network = training.trained(run.summary, workdirs / name, options.data_dir)
        except FileNotFoundError as error:
            print(f"{name}: left out; {error}", flush=True)
            continue
        record = MEASUREMENTS[options.what](network, options.num_examples)
        record |= {"commit": provenance.commit(), "hardware": provenance.hardware()}
        with table.changing(results) as runs:
            runs[name].measured[options.what] = record
        print(f"{name}: {options.what} measured", flush=True)
    report.write(results, this)


def measure_curvature(network: training.Trained, num_examples: int) -> dict[str, Any]:
    """Measure eigenvalues by name, largest first, their largest relative residual, and losses along a line."""
    params, loss_fn = network.params, network.loss_fn
    start = trees.normal_like(jax.random.key(0), params)
    size = min(_BATCH, num_examples)
    sets = {name: training.batches(split, num_examples, size) for name, split in network.splits.items()}
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
    head = network.last_layer
    solve(
        "last_layer",
        curvature.restrict(operators["train"], params, head),
        paths.partition(start, head)[0],
        _TOP,
    )
    for i in range(_SINGLE):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], sets["train"][0])
        operator = curvature.hessian(loss_fn, params, one, linearize=True)
        solve(f"image_{i}", operator, start, network.num_classes)
    for name, batches in sets.items():
        line = curvature.landscape(loss_fn, params, batches, [dominant], [_LINE])
        record[f"line_{name}"] = line.values.tolist()
    return record


def measure_robustness(network: training.Trained, num_examples: int) -> dict[str, Any]:
    """Attack a network, accuracies in percent, and measure its Hessian."""
    params = network.params
    one = {name: training.batches(split, num_examples, num_examples) for name, split in network.splits.items()}
    test, train = (jax.tree.map(jnp.asarray, one[name][0]) for name in ("test", "train"))
    accuracy: dict[str, float] = {}
    for norm, (epsilon, named) in ATTACKS.items():
        rows = attacks.evaluate(
            network.attacked_loss_fn, params, test, named, [epsilon], jax.random.key(0), norm=norm
        )
        accuracy |= {row.attack: 100 * row.accuracy for row in rows if row.attack in ("clean", *named)}
    operator = curvature.hessian(network.loss_fn, params, train, linearize=True)
    spectrum = curvature.eigsh(operator, trees.normal_like(jax.random.key(0), params), k=_TOP, rtol=1e-2)
    return {
        "accuracy": accuracy,
        "eigenvalues": [float(value) for value in spectrum.eigenvalues],
        "residuals": [float(value) for value in spectrum.residuals],
        "num_examples": num_examples,
    }


MEASUREMENTS = {"curvature": measure_curvature, "robustness": measure_robustness}


if __name__ == "__main__":
    main()
