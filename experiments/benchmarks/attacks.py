"""Speed of PGD against foolbox and torchattacks, on the same weights, images and cores.

    python experiments/benchmarks/attacks.py --data_dir DIR [--networks mlp,cnn] [--rounds 3] [--peers ...]

PGD-40 in L-infinity 0.05, step 0.005, 10 random restarts, 1,000 test images of Fashion-MNIST, worst case per
image. foolbox has `repeat` for restarts, which attacks every image each time; torchattacks is run ten times on
every image, and as `multiattack` through its `MultiAttack`, which gives a restart only the images that stand.
Networks are trained here on 20,000 images with Adam. The peers run in a process of their own, so that thread
pools do not fight; `--peer_python` names its interpreter, which needs torch, foolbox and torchattacks. Where
JAX uses a GPU, PyTorch is put on it too, and the files are attacks_gpu.json and attacks_gpu.md.

The network with convolutions pools as the networks of hessabs do; with `--flax_pooling` it is given to hessabs
with flax's `max_pool` too, whose gradient XLA computes slowly on CPUs. Measurements add up in attacks.json
beside this file, by network and by who ran, and attacks.md is written from it: a slow peer can be measured in a
call of its own.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import linen as nn

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments import provenance
from hessabs import attacks, data, models
from hessabs.attacks import losses
from hessabs.models.layers import max_pool

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "folder with Fashion-MNIST as TFDS prepares it", required=True
)
_NETWORKS = flags.DEFINE_list("networks", ["mlp", "cnn"], "which networks")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "timed runs of each")
_PEERS = flags.DEFINE_list("peers", ["foolbox", "torchattacks", "multiattack"], "who else runs; empty for none")
_FLAX_POOLING = flags.DEFINE_bool("flax_pooling", False, "measure flax's max_pool too")
_PEER_PYTHON = flags.DEFINE_string("peer_python", sys.executable, "interpreter of the peers")
HERE = pathlib.Path(__file__).parent
SETTING: dict[str, Any] = {"epsilon": 0.05, "step_size": 0.005, "steps": 40, "restarts": 10}
IMAGES = 1000
_LOAD_APART = 2.0


class CNN(nn.Module):
    """Two 5x5 convolutions and two dense layers, 215,370 parameters."""

    flax_pooling: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits (N, 10) of images (N, 28, 28, 1)."""
        for width in (16, 32):
            x = nn.relu(nn.Conv(width, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), (2, 2)) if self.flax_pooling else max_pool(x, 2, 2)
        return nn.Dense(10)(nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1))))


def main(argv: Sequence[str]) -> None:
    """Measure, add to the numbers that are there, and write the table."""
    del argv
    dataset = data.load("fashion_mnist", data_dir=_DATA_DIR.value)
    path = HERE / f"attacks{provenance.platform_suffix()}.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    for name in _NETWORKS.value:
        rows = record.setdefault(name, {})
        networks: dict[str, nn.Module] = {"hessabs": models.mlp()} if name == "mlp" else {"hessabs": CNN()}
        if name == "cnn" and _FLAX_POOLING.value:
            networks["hessabs, max_pool of flax"] = CNN(flax_pooling=True)
        variables = train(networks["hessabs"], dataset)
        image = dataset.test["image"][:IMAGES].astype(np.float32) / 255
        label = dataset.test["label"][:IMAGES].astype(np.int32)
        for who, model in networks.items():
            rows[who] = ours(model, variables, image, label)
        rows.update(peers(name, variables, image, label))
        for row in rows.values():
            row.setdefault("commit", provenance.commit())
        path.write_text(json.dumps(record, indent=2) + "\n")
        path.with_suffix(".md").write_text(table(record))
    print(table(record))


def ours(model: nn.Module, variables: Any, image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Time hessabs; the first run compiles and is kept apart."""
    logits_fn: Any = model.apply
    loss_fn = losses.cross_entropy(logits_fn)
    batch = {"image": jnp.asarray(image), "label": jnp.asarray(label)}
    attack = attacks.pgd(**SETTING)
    timings = []
    for _ in range(_ROUNDS.value + 1):
        start, cpu = time.perf_counter(), time.process_time()
        got = attack(loss_fn, variables, batch, jax.random.key(0))
        fallen = np.asarray(losses.per_example(loss_fn, variables, got, "image")[1])
        timings.append((time.perf_counter() - start, time.process_time() - cpu))
    return {
        "first": timings[0][0],
        "seconds": [wall for wall, _ in timings[1:]],
        "cpu": [cpu for _, cpu in timings[1:]],
        "accuracy": float((~fallen).mean()),
        "version": f"jax {jax.__version__}",
        "load": os.getloadavg()[0],
    }


def peers(name: str, variables: Any, image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Time the peers in another process."""
    wanted = [peer for peer in _PEERS.value if peer]
    if not wanted:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        problem = pathlib.Path(folder) / "problem.npz"
        leaves: dict[str, Any] = {
            "/".join(part.key for part in path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        }
        np.savez(problem, image=image, label=label, **leaves)
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        setting = json.dumps(
            {**SETTING, "rounds": _ROUNDS.value, "network": name, "peers": wanted, "device": device}
        )
        script = str(HERE / "attacks_peers.py")
        done = subprocess.run(
            [_PEER_PYTHON.value, script, str(problem), setting], check=True, stdout=subprocess.PIPE, text=True
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(record: dict[str, Any]) -> str:
    """Write the numbers as Markdown."""
    epsilon, steps, restarts = (SETTING[name] for name in ("epsilon", "steps", "restarts"))
    lines = [
        "# Speed of PGD",
        "",
        f"PGD-{steps}, L-infinity {epsilon}, {restarts} restarts, {IMAGES} test images of Fashion-MNIST, worst "
        "case per image; medians of the rounds, compilation apart. CPU seconds are those of all threads, which "
        "other work on the machine changes less than the seconds by the clock; these are compared where the "
        "load was alike.",
        "",
        f"`python experiments/benchmarks/attacks.py --data_dir DIR`; {provenance.hardware()}.",
        "",
        "| network | who | seconds | CPU s | times ours (clock, CPU) | accuracy % | rounds | load | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for network, rows in record.items():
        base = rows["hessabs"]
        base_seconds, base_cpu = (statistics.median(base[key]) for key in ("seconds", "cpu"))
        for who, row in rows.items():
            seconds, cpu = (statistics.median(row[key]) for key in ("seconds", "cpu"))
            # Seconds by the clock compare only where as much else was running.
            alike = abs(row["load"] - base["load"]) < _LOAD_APART
            times = f"{f'{seconds / base_seconds:.2f}' if alike else '-'}, {cpu / base_cpu:.2f}"
            first = f" (first run {row['first']:.1f})" if "first" in row else ""
            lines.append(
                f"| {network} | {who} ({row['version']}) | {seconds:.2f}{first} | {cpu:.2f} | {times} "
                f"| {100 * row['accuracy']:.1f} | {len(row['seconds'])} | {row['load']:.1f} "
                f"| {row['commit'][:7]} |"
            )
    return "\n".join(lines) + "\n"


def train(model: nn.Module, dataset: data.Dataset) -> Any:
    """Train on 20,000 images with Adam; the variables."""
    image = dataset.train["image"].astype(np.float32) / 255
    variables, optimizer = model.init(jax.random.key(0), image[:1]), optax.adam(1e-3)
    logits_fn: Any = model.apply

    @jax.jit
    def step(variables: Any, state: Any, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        loss_fn = losses.cross_entropy(logits_fn)
        updates, state = optimizer.update(jax.grad(loss_fn)(variables, {"image": x, "label": y}), state)
        return optax.apply_updates(variables, updates), state

    state = optimizer.init(variables)
    for part in np.random.default_rng(0).permutation(len(image))[:19968].reshape(-1, 128):
        variables, state = step(variables, state, image[part], dataset.train["label"][part])
    return variables


if __name__ == "__main__":
    app.run(main)
