"""Your own training loop on all devices: a growing batch, its adversarial examples and the Hessian, all split.

    JAX_NUM_CPU_DEVICES=8 python examples/data_parallel.py

Everything is ``jax.jit`` with ``NamedSharding``: put the batch on the mesh, split along its examples, and
the params on every device; the functions of hessabs are called as on one device. At the end the same
training on one device shows how far the two are apart. (`hessabs train --devices 8` does this for the
networks of the library.)

On several CPU devices Python must not run more than 32 programs with a collective ahead of them, or they wait
for each other for ever: here each epoch ends with a measurement that is read; else call
`jax.block_until_ready(params)` now and then. GPUs and TPUs need nothing.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import hessabs
from hessabs.batch_size import Observation
from hessabs.data import load
from hessabs.models import mlp

EXAMPLES, SMALLEST, LARGEST = 1024, 64, 512


class Result(NamedTuple):
    """What a training leaves."""

    params: Any
    batch_sizes: list[int]  # of the updates
    eigenvalues: list[float]  # at each measurement


def make_loss(model: nn.Module) -> Any:
    """Make the mean cross-entropy of a network."""

    def loss_fn(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        logits: Any = model.apply({"params": params}, batch["image"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    return loss_fn


def train(num_devices: int, epochs: int = 6) -> Result:
    """Train on so many devices."""
    mesh = jax.make_mesh((num_devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:num_devices])
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    digits = load("digits").train
    data: dict[str, np.ndarray] = {
        "image": digits["image"][:EXAMPLES].astype(np.float32) / 255,
        "label": digits["label"][:EXAMPLES].astype(np.int32),
    }

    model = mlp(10, (64,))
    loss_fn = make_loss(model)
    controller = hessabs.batch_size.absa(
        SMALLEST, LARGEST, measure_every=EXAMPLES, patience=2, adversarial_fraction=0.25
    )
    optimizer = optax.chain(
        hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.02), max_fraction=0.25),
        optax.trace(0.9),
        hessabs.scale_by_batch_size(),
        optax.scale_by_learning_rate(0.05),
    )
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    # The one line about devices: params and state everywhere, batches (below) in parts.
    params, opt_state = jax.device_put((params, optimizer.init(params)), whole)
    everything = jax.device_put(data, split)

    @jax.jit  # compiled once for each batch size: log2(LARGEST / SMALLEST) more times
    def step(params: Any, opt_state: Any, batch: Any, lr_scale: Any, fraction: Any) -> Any:
        gradient = jax.grad(loss_fn)(params, batch)
        extra = {"loss_fn": loss_fn, "batch": batch, "lr_scale": lr_scale, "adversarial_fraction": fraction}
        updates, opt_state = optimizer.update(gradient, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    state, samples, vector = jax.device_get(controller.init()), 0, params
    result = Result(None, [], [])
    while samples < epochs * EXAMPLES:
        size, place = int(state.batch_size), samples % EXAMPLES
        batch = jax.device_put({name: x[place : place + size] for name, x in data.items()}, split)
        params, opt_state = step(params, opt_state, batch, state.lr_scale, state.adversarial_fraction)
        result.batch_sizes.append(size)
        samples += size
        if samples >= state.observe_at:
            top = hessabs.power_iteration(hessabs.hessian(loss_fn, params, everything), vector)
            vector, eigenvalue = top.eigenvector, float(top.eigenvalue)
            result.eigenvalues.append(eigenvalue)
            state = jax.device_get(controller.update(Observation(samples, eigenvalue), state))
    return result._replace(params=params)


def main() -> None:
    """Train on all devices, then on one, and compare."""
    several, one = train(jax.device_count()), train(1)
    print(f"{jax.device_count()} devices: batches {several.batch_sizes[0]} to {several.batch_sizes[-1]}")
    print("eigenvalues:", " ".join(f"{value:.4f}" for value in several.eigenvalues))
    assert several.batch_sizes == one.batch_sizes
    apart = jax.tree.map(
        lambda a, b: float(np.max(np.abs(np.asarray(a) - np.asarray(b)))), several.params, one.params
    )
    print(f"largest difference from one device: {max(jax.tree.leaves(apart)):.1e}")


if __name__ == "__main__":
    main()
