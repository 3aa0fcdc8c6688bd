"""Adversarial training of a network with batch norm: the examples are replaced before the gradient is taken.

    python examples/batch_norm.py

``hessabs.adversarial_gradient`` corrects a gradient by that of a few examples, which is exact only where
examples do not influence each other. In training mode batch norm mixes them, so here ``replace_fraction`` makes
the batch (the network in evaluation mode inside), and then one gradient in training mode is all there is. The
fraction and the batch size are those of a rule; nothing is compiled again when the fraction falls.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

import hessabs


class Network(nn.Module):
    """Two dense layers with a batch norm in between."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Return the logits."""
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(32)(x))
        return nn.Dense(2)(nn.relu(x))


NETWORK = Network()


def cross_entropy(logits: Any, batch: dict) -> jax.Array:
    """Mean cross-entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def evaluation_loss(statistics: dict, params: dict, batch: dict) -> jax.Array:
    """Loss with fixed statistics: what attacks and curvature ask for."""
    variables = {"params": params, "batch_stats": statistics}
    return cross_entropy(NETWORK.apply(variables, batch["image"], train=False), batch)


def training_loss(params: dict, statistics: dict, batch: dict) -> tuple[jax.Array, dict]:
    """Loss with the statistics of the batch, and the new running ones."""
    variables = {"params": params, "batch_stats": statistics}
    logits, new = NETWORK.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    return cross_entropy(logits, batch), new["batch_stats"]


def make_data(seed: int, examples: int) -> dict:
    """Draw two overlapping clouds in [0, 1]^8."""
    label = jnp.arange(examples) % 2
    noise = jax.random.normal(jax.random.key(seed), (examples, 8))
    return {"image": jax.nn.sigmoid(0.7 * noise + label[:, None] - 0.5), "label": label}


def accuracy(params: dict, statistics: dict, batch: dict) -> float:
    """Percent of the examples classified rightly, in evaluation mode."""
    variables = {"params": params, "batch_stats": statistics}
    logits: Any = NETWORK.apply(variables, batch["image"], train=False)
    return 100 * float(jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"]))


def main() -> None:
    """Train, and print the accuracy on clean and on attacked examples."""
    data, test, attack = make_data(0, 4096), make_data(1, 1024), hessabs.attacks.fgsm(0.05)
    rule = hessabs.batch_size.with_adversarial(hessabs.batch_size.timer(32, 256, every=8192), 0.5)
    largest = float(rule.init().adversarial_fraction)  # rules only lower it
    optimizer = optax.chain(
        optax.trace(0.9), hessabs.adaptive_batch_size(rule), optax.scale_by_learning_rate(0.01)
    )
    variables = NETWORK.init(jax.random.key(2), data["image"][:1], train=False)
    params, statistics = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params: dict, statistics: dict, state: Any, batch: dict) -> tuple:
        fraction = hessabs.read(state).adversarial_fraction
        loss_fn = Partial(evaluation_loss, statistics)
        batch = hessabs.attacks.replace_fraction(attack, loss_fn, params, batch, fraction, max_fraction=largest)
        gradient, statistics = jax.grad(training_loss, has_aux=True)(params, statistics, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), statistics, state

    seen = 0
    while seen < 32_768:
        size, start = int(hessabs.read(state).batch_size), seen % 4096
        batch = jax.tree.map(lambda x, a=start, b=start + size: x[a:b], data)
        params, statistics, state = step(params, statistics, state, batch)
        if (seen := seen + size) % 8192 == 0:
            now = hessabs.read(state)
            print(f"{seen:6d} examples: now batches of {now.batch_size}, fraction {now.adversarial_fraction}")
    attacked = attack(Partial(evaluation_loss, statistics), params, test)
    clean, robust = accuracy(params, statistics, test), accuracy(params, statistics, attacked)
    print(f"accuracy {clean:.1f} %, attacked {robust:.1f} %")


if __name__ == "__main__":
    main()
