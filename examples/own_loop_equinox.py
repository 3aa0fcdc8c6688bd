"""A loop of Equinox whose batch grows as far as the curvature lets the learning rate follow.

    python examples/own_loop_equinox.py

A module of Equinox holds params and all else (here the activation). ``eqx.partition`` takes the two apart: the
params are what optax and the library see, and the loss of curvature puts the two together again. The rule,
``stability_limited``, grows the batch while eigenvalue times learning rate stays below 1.25. Nothing is
accumulated here: the step takes the whole batch, and is compiled once for each of its few sizes.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import hessabs

EPOCHS, TRAIN = 24, 1408  # passes; examples of the training set
SMALLEST, LARGEST, LR = 16, 256, 0.05  # examples of a batch; learning rate of the smallest


class Network(eqx.Module):
    """A perceptron for one example, as Equinox has it."""

    mlp: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        """Draw the params."""
        self.mlp = eqx.nn.MLP(64, 10, 64, 2, activation=jax.nn.gelu, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        return self.mlp(x)


def model_loss(model: Network, batch: Any) -> jax.Array:
    """The mean cross-entropy of a batch."""
    logits = jax.vmap(model)(batch["image"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def main() -> None:
    """Train, and print what is measured and decided."""
    digits, order = load_digits(), np.random.default_rng(0).permutation(1797)
    data = {"image": np.float32(digits.data[order] / 16), "label": np.int32(digits.target[order])}
    train, test = jax.tree.map(lambda x: x[:TRAIN], data), jax.tree.map(lambda x: x[TRAIN:], data)

    # Not at once: a network that has learnt nothing yet is flat, and any step looks stable there.
    rule = hessabs.batch_size.stability_limited(SMALLEST, LARGEST, lr=LR, measure_every=4 * TRAIN)
    optimizer = optax.chain(hessabs.adaptive_batch_size(rule), optax.scale_by_learning_rate(LR))
    model = Network(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    opt_state = optimizer.init(params)

    def loss_fn(params: Any, batch: Any) -> jax.Array:  # of curvature, and of attacks
        return model_loss(eqx.combine(params, static), batch)

    @eqx.filter_jit
    def step(model: Network, opt_state: Any, batch: Any, eigenvalue: jax.Array) -> Any:
        loss, gradient = eqx.filter_value_and_grad(model_loss)(model, batch)
        params = eqx.filter(model, eqx.is_inexact_array)
        updates, opt_state = optimizer.update(gradient, opt_state, params, eigenvalue=eigenvalue)
        return eqx.apply_updates(model, updates), opt_state, loss

    random, rows = np.random.default_rng(1), np.arange(0)  # of the epoch, those that are left
    seen, updates, vector = 0, 0, params
    while seen < EPOCHS * TRAIN:
        size = int(hessabs.read(opt_state).batch_size)
        if len(rows) < size:
            rows = np.append(rows, random.permutation(TRAIN))
        batch = {name: x[rows[:size]] for name, x in train.items()}
        eigenvalue = jnp.float32(jnp.nan)  # none was measured
        if due := bool(hessabs.measurement_due(opt_state)):
            operator = hessabs.hessian(loss_fn, eqx.filter(model, eqx.is_inexact_array), train)
            top = hessabs.power_iteration(operator, vector, rtol=0.02, max_iters=50)
            vector, eigenvalue = top.eigenvector, top.eigenvalue
        model, opt_state, loss = step(model, opt_state, batch, eigenvalue)
        rows, seen, updates = rows[size:], seen + size, updates + 1
        if due:
            now = hessabs.read(opt_state)
            print(
                f"{seen:5d} examples: loss {loss:.2f}, eigenvalue {top.eigenvalue:5.2f} after {top.num_iters} "
                f"products, next batch {now.batch_size}, learning rate {LR * now.lr_scale:.3f}"
            )
    right = np.argmax(jax.vmap(model)(test["image"]), axis=-1) == test["label"]
    print(f"{updates} updates; accuracy {100 * np.mean(right):.1f} %")


if __name__ == "__main__":
    main()
