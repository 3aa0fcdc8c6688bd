"""A character transformer with AdamW in a loop of your own: the batch follows the noise of the gradient.

    python examples/transformer_adamw.py [--steps 60]

One optax chain clips, adapts, decays the weights, and lets the gradient noise scale choose the batch; the rate
follows with the square root, as Adam's kind wants, under a warm-up and a cosine that count sequences and not
updates. Two numbers are logged where the batch grows: the sharpness of the Hessian, and that of the Hessian as
Adam sees it, which is what decides whether Adam's step is stable.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hessabs
from hessabs import curvature
from hessabs.data.text import load_text
from hessabs.models import char_transformer_small

MICRO, LARGEST, LR = 4, 64, 3e-3  # sequences in a micro-batch and in the largest batch; rate of the first
NETWORK: Any = char_transformer_small(96)


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Mean loss of the next character, in nats."""
    logits = NETWORK.apply({"params": params}, batch["tokens"][:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["tokens"][:, 1:]))


def make_optimizer(total: float, warmup: float) -> optax.GradientTransformationExtraArgs:
    """Chain clipping, AdamW whose memory follows the batch, the rule, and a schedule."""
    rule = hessabs.batch_size.gradient_noise_scale(2 * MICRO, LARGEST, measure_every=2 * MICRO, average_over=4)
    rule = hessabs.batch_size.with_coupling(rule, "sqrt")

    schedule = optax.warmup_cosine_decay_schedule(0.0, LR, warmup, total)
    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        hessabs.by_examples(optax.scale_by_adam, batch_size=2 * MICRO, lr_coupling="sqrt")(b1=0.9, b2=0.99),
        optax.add_decayed_weights(0.01, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        hessabs.adaptive_batch_size(rule),
        hessabs.by_samples(schedule, 2 * MICRO),
    )
    return hessabs.accumulate(chain, micro_batch_size=MICRO, statistics=True)


def main() -> None:
    """Train, and print what the rule decides and how sharp the loss is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="micro-batches")
    steps = parser.parse_args().steps
    text = load_text("stdlib", 32)
    tokens = text.train["tokens"][np.random.default_rng(0).permutation(len(text.train["tokens"]))]
    held_out = {"tokens": jnp.asarray(text.test["tokens"][:64])}
    optimizer = make_optimizer(total=steps / 2, warmup=steps / 20)
    params = NETWORK.init(jax.random.key(0), held_out["tokens"][:1, :-1])["params"]
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        gradient = jax.grad(loss_fn)(params, batch)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    size, first = 0, float(loss_fn(params, held_out))
    for number in range(steps):
        batch = {"tokens": jnp.asarray(tokens[number * MICRO : (number + 1) * MICRO])}
        params, state = step(params, state, batch)
        reading = hessabs.read(state)
        if bool(state.updated) and int(reading.batch_size) != size:
            size = int(reading.batch_size)
            hessian = curvature.hessian(loss_fn, params, held_out)
            scale = curvature.adam_scale(state, b2=0.99)
            start = jax.tree.map(jnp.ones_like, params)
            plain = curvature.eigsh(hessian, start, 1, rtol=0.05)
            seen = curvature.eigsh(curvature.preconditioned(hessian, scale), start, 1, rtol=0.05)
            print(
                f"{int(reading.samples):5d} sequences: batch {size}, noise scale {reading.noise_scale:.0f}, "
                f"sharpness {plain.eigenvalues[0]:.1f}, as Adam sees it {seen.eigenvalues[0]:.0f} "
                f"(at the full rate stable below {38 / (LR * float(reading.lr_scale)):.0f})"
            )
    print(f"held-out loss {first:.2f} -> {float(loss_fn(params, held_out)):.2f} nats a character")


if __name__ == "__main__":
    main()
