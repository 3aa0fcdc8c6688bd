"""The adversarial step and a growing batch in an optax chain of your own, with any model and any loop.

    python examples/optax_chain.py

Two Gaussian clouds, logistic regression, batches that grow from 16 to 128 examples.
"""

import jax
import jax.numpy as jnp
import optax

import hessabs
from hessabs.batch_size import ControllerState, Observation


def loss_fn(params: dict, batch: dict) -> jax.Array:
    """Mean cross-entropy of logistic regression."""
    logits = batch["image"] @ params["w"] + params["b"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def main() -> None:
    """Train, and print what the controller sees and decides."""
    label = jnp.arange(4096) % 2
    image = jax.nn.sigmoid(jax.random.normal(jax.random.key(0), (4096, 8)) + 2.0 * label[:, None] - 1.0)
    params = {"w": jnp.zeros((8, 2)), "b": jnp.zeros(2)}
    controller = hessabs.batch_size.absa(16, 128, measure_every=1024, patience=2, adversarial_fraction=0.25)
    optimizer = optax.chain(
        hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.02), max_fraction=0.25),
        optax.trace(0.9),
        hessabs.scale_by_batch_size(),
        optax.scale_by_learning_rate(0.05),
    )
    opt_state, state, samples, top = optimizer.init(params), controller.init(), 0, None

    @jax.jit
    def step(params: dict, opt_state: tuple, batch: dict, state: ControllerState) -> tuple:
        gradient = jax.grad(loss_fn)(params, batch)
        scale, fraction = state.lr_scale, state.adversarial_fraction
        extra = {"loss_fn": loss_fn, "batch": batch, "lr_scale": scale, "adversarial_fraction": fraction}
        updates, opt_state = optimizer.update(gradient, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    while samples < 16_384:
        start, size = samples % 4096, int(state.batch_size)
        batch = {"image": image[start : start + size], "label": label[start : start + size]}
        params, opt_state = step(params, opt_state, batch, state)
        if (samples := samples + size) >= state.observe_at:
            operator = hessabs.hessian(loss_fn, params, {"image": image, "label": label})
            top = hessabs.power_iteration(operator, top.eigenvector if top else params)
            state = controller.update(Observation(samples, top.eigenvalue), state)
            print(f"{samples:6d} examples: eigenvalue {top.eigenvalue:.4f}, batch size {state.batch_size}")
    print(f"final loss {loss_fn(params, {'image': image, 'label': label}):.4f}")


if __name__ == "__main__":
    main()
