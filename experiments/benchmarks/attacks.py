"""Speed of PGD against foolbox and torchattacks, on the same weights, images and cores, in one process.

    python experiments/benchmarks/attacks.py --data_dir DIR [--rounds 3] [--networks mlp,cnn]

Writes attacks.md beside this file. PGD-40 in L-infinity 0.05, step 0.005, 10 random restarts, 1,000 test images
of Fashion-MNIST, worst case per image. foolbox has `repeat` for restarts, which attacks every image each time;
torchattacks is run ten times on every image, and once more through its `MultiAttack`, which gives a restart
only the images that stand. Networks are trained here for an epoch with Adam. Needs torch (CPU), foolbox and
torchattacks. The first run of hessabs compiles and is reported by itself; then all take turns, and each one's
median is given.
"""

import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchattacks
from absl import app, flags
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from hessabs import attacks, data, models
from hessabs.attacks import losses

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder with Fashion-MNIST as TFDS prepares it", required=True
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "timed runs of each")
_NETWORKS = flags.DEFINE_list("networks", ["mlp", "cnn"], "which networks")
EPSILON, STEP_SIZE, STEPS, RESTARTS, IMAGES = 0.05, 0.005, 40, 10, 1000


class CNN(nn.Module):
    """Two 5x5 convolutions and two dense layers, 215,370 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits (N, 10) of images (N, 28, 28, 1)."""
        for width in (16, 32):
            x = nn.max_pool(nn.relu(nn.Conv(width, (5, 5))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1))))


def main(argv: Sequence[str]) -> None:
    """Measure and write the table."""
    del argv
    flags_given = f"--rounds {_ROUNDS.value} --networks {','.join(_NETWORKS.value)}"
    lines = [
        "# Speed of PGD",
        "",
        f"`python experiments/benchmarks/attacks.py --data_dir DIR {flags_given}`; {provenance.hardware()}; "
        f"jax {jax.__version__}, torch {torch.__version__}, foolbox {foolbox.__version__}, torchattacks "
        f"{torchattacks.__version__}; commit {provenance.commit()}",
        "",
        f"PGD-{STEPS}, L-infinity {EPSILON}, {RESTARTS} restarts, {IMAGES} images, worst case; medians.",
        "",
        "| network | who | seconds | times hessabs | accuracy % (clean) |",
        "|---|---|---|---|---|",
    ]
    dataset = data.load("fashion_mnist", data_dir=_DATA_DIR.value)
    for name in _NETWORKS.value:
        lines += measure(name, models.mlp() if name == "mlp" else CNN(), dataset)
        print("\n".join(lines), flush=True)
    (pathlib.Path(__file__).parent / "attacks.md").write_text("\n".join(lines) + "\n")


def measure(name: str, model: nn.Module, dataset: data.Dataset) -> list[str]:
    """Time everybody on one network; lines of the table."""
    params = train(model, dataset)
    network = to_torch(name, params)
    image = dataset.test["image"][:IMAGES].astype(np.float32) / 255
    label = dataset.test["label"][:IMAGES]
    tensors = torch.tensor(image.transpose(0, 3, 1, 2).copy()), torch.tensor(label, dtype=torch.long)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label, jnp.int32)}
    logits_fn: Any = model.apply
    loss_fn = losses.cross_entropy(logits_fn)
    clean = ~np.asarray(losses.per_example(loss_fn, params, batch, "image")[1])
    with torch.no_grad():
        theirs = (network(tensors[0]).argmax(1) == tensors[1]).numpy()
    assert abs(clean.mean() - theirs.mean()) <= 0.002, "the two networks are not the same"

    attack = attacks.pgd(EPSILON, steps=STEPS, step_size=STEP_SIZE, restarts=RESTARTS)

    def ours() -> float:
        got = attack(loss_fn, params, batch, jax.random.key(0))
        return float((~losses.per_example(loss_fn, params, got, "image")[1]).mean())

    peer = foolbox.PyTorchModel(network, bounds=(0, 1))
    repeated = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=STEP_SIZE).repeat(RESTARTS)
    single = torchattacks.PGD(network, eps=EPSILON, alpha=STEP_SIZE, steps=STEPS)
    multi = torchattacks.MultiAttack([single] * RESTARTS)

    def standing(got: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return (network(got).argmax(1) == tensors[1]).numpy()

    runs = {
        "hessabs": ours,
        "foolbox": lambda: float(standing(repeated(peer, *tensors, epsilons=EPSILON)[1]).mean()),
        "torchattacks": lambda: float(
            np.all([standing(single(*tensors)) for _ in range(RESTARTS)], axis=0).mean()
        ),
        "torchattacks MultiAttack": lambda: float(standing(multi(*tensors)).mean()),
    }
    first, accuracy = timed(ours)
    results: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
    for _ in range(_ROUNDS.value):
        for key, run in runs.items():
            results[key].append(timed(run))
    seconds = {key: statistics.median(s for s, _ in values) for key, values in results.items()}
    base = seconds["hessabs"]
    rows = [("hessabs, first run", first, accuracy)]
    rows += [(key, seconds[key], results[key][0][1]) for key in runs]
    return [
        f"| {name} | {who} | {s:.2f} | {s / base:.2f} | {100 * a:.1f} ({100 * clean.mean():.1f}) |"
        for who, s, a in rows
    ]


def timed(run: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds that a run took, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def train(model: nn.Module, dataset: data.Dataset) -> Any:
    """Train for an epoch with Adam; the variables."""
    image = dataset.train["image"].astype(np.float32) / 255
    params, optimizer = model.init(jax.random.key(0), image[:1]), optax.adam(1e-3)

    logits_fn: Any = model.apply

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        loss_fn = losses.cross_entropy(logits_fn)
        updates, state = optimizer.update(jax.grad(loss_fn)(params, {"image": x, "label": y}), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for part in np.random.default_rng(0).permutation(len(image))[:59904].reshape(-1, 128):
        params, state = step(params, state, image[part], dataset.train["label"][part])
    return params


def to_torch(name: str, variables: Any) -> torch.nn.Module:
    """Make the same network in PyTorch."""
    params = variables["params"]

    def dense(key: str, rows: np.ndarray | None = None) -> torch.nn.Linear:
        kernel = np.array(params[key]["kernel"])
        kernel = kernel if rows is None else kernel[rows]
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data = torch.tensor(kernel.T.copy())
        layer.bias.data = torch.tensor(np.array(params[key]["bias"]))
        return layer

    def convolution(key: str) -> torch.nn.Conv2d:
        kernel = np.array(params[key]["kernel"])
        layer = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 5, padding=2)
        layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())
        layer.bias.data = torch.tensor(np.array(params[key]["bias"]))
        return layer

    relu, flatten = torch.nn.ReLU(), torch.nn.Flatten()
    if name == "mlp":
        layers = [flatten, dense("Dense_0"), relu, dense("Dense_1"), relu, dense("Dense_2")]
    else:
        pool = torch.nn.MaxPool2d(2)
        # Flattening (C, H, W) there, (H, W, C) here.
        rows = np.arange(7 * 7 * 32).reshape(7, 7, 32).transpose(2, 0, 1).ravel()
        layers = [convolution("Conv_0"), relu, pool, convolution("Conv_1"), relu, pool]
        layers += [flatten, dense("Dense_0", rows), relu, dense("Dense_1")]
    return torch.nn.Sequential(*layers).eval()


if __name__ == "__main__":
    app.run(main)
