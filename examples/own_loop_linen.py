"""A plain loop of Linen and optax whose batch grows by ABS, with FGSM examples mixed in (ABSA).

    python examples/own_loop_linen.py

What the library adds to such a loop: two transformations in the chain, ``accumulate`` around what is to run
once for each batch, and an eigenvalue where the rule asks for one. The step takes micro-batches of one size, so
it is compiled once, however large the batch gets.
"""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import hessabs

EPOCHS, TRAIN = 12, 1408  # passes; examples of the training set
MICRO, LARGEST = 32, 256  # examples of a micro-batch, which is the first batch, and of the largest batch
FRACTION = 0.25  # of the first batches is adversarial; half as much after each growth, none in the largest


class Network(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        return nn.Dense(10)(nn.relu(nn.Dense(64)(nn.relu(nn.Dense(64)(x)))))


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """The mean cross-entropy of a batch: gradient, attack and Hessian are taken of it."""
    logits: Any = Network().apply(params, batch["image"])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def load() -> tuple[Any, Any]:
    """Return scikit-learn's digits, pixels in [0, 1]: those to train on, and those to test on."""
    digits, order = load_digits(), np.random.default_rng(0).permutation(1797)
    data = {"image": np.float32(digits.data[order] / 16), "label": np.int32(digits.target[order])}
    return jax.tree.map(lambda x: x[:TRAIN], data), jax.tree.map(lambda x: x[TRAIN:], data)


def micro_batches(data: Any) -> Iterator[Any]:
    """Yield micro-batches for ever, in a new order each epoch."""
    random = np.random.default_rng(1)
    while True:
        for rows in random.permutation(TRAIN).reshape(-1, MICRO):
            yield jax.tree.map(lambda x, rows=rows: x[rows], data)


def main() -> None:
    """Train, and print what is measured and decided."""
    train, test = load()
    attack = hessabs.attacks.fgsm(0.05)
    rule = hessabs.batch_size.absa(
        MICRO, LARGEST, measure_every=TRAIN, patience=3, adversarial_fraction=FRACTION
    )
    per_batch = optax.chain(
        optax.trace(0.9),
        hessabs.adaptive_batch_size(rule),  # the rule, and the factor on the learning rate that it decides
        optax.scale_by_learning_rate(0.03),
    )
    optimizer = optax.chain(
        hessabs.adversarial_gradient(attack, max_fraction=FRACTION),  # of each micro-batch
        hessabs.accumulate(per_batch, micro_batch_size=MICRO),
    )
    params = Network().init(jax.random.key(0), train["image"])
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any, eigenvalue: jax.Array) -> Any:
        print("compiling the step")  # JAX runs Python once for each compilation
        gradient = jax.grad(loss_fn)(params, batch)
        fraction = hessabs.read(opt_state).adversarial_fraction
        extra = {"loss_fn": loss_fn, "batch": batch, "adversarial_fraction": fraction}
        updates, opt_state = optimizer.update(gradient, opt_state, params, eigenvalue=eigenvalue, **extra)
        return optax.apply_updates(params, updates), opt_state

    stream, samples, updates, vector = micro_batches(train), 0, 0, params
    measured_on = jax.tree.map(lambda x: x[:512], train)  # the same each time
    while samples < EPOCHS * TRAIN:
        size, due = int(hessabs.read(opt_state).batch_size), bool(hessabs.measurement_due(opt_state))
        eigenvalue = jnp.float32(jnp.nan)  # none was measured
        if due:
            operator = hessabs.hessian(loss_fn, params, measured_on)
            top = hessabs.power_iteration(operator, vector, rtol=0.05)
            vector, eigenvalue = top.eigenvector, top.eigenvalue  # the next one starts where this one ended
        for _ in range(size // MICRO):
            params, opt_state = step(params, opt_state, next(stream), eigenvalue)
        samples, updates = samples + size, updates + 1
        if due:
            now = hessabs.read(opt_state)
            print(
                f"{samples:5d} examples: eigenvalue {top.eigenvalue:5.2f} after {top.num_iters:2d} products, "
                f"next batch {now.batch_size}, {now.adversarial_fraction:.1%} adversarial"
            )

    def accuracy(batch: Any) -> float:
        logits: Any = Network().apply(params, batch["image"])
        return 100 * float(np.mean(np.argmax(logits, axis=-1) == batch["label"]))

    print(f"{updates} updates of {samples // MICRO} micro-batches")
    print(f"accuracy {accuracy(test):.1f} %, under FGSM {accuracy(attack(loss_fn, params, test)):.1f} %")


if __name__ == "__main__":
    main()
