"""Every transformation of the library, with the extra arguments that it needs, for the contract suite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import hessabs


class Case(NamedTuple):
    make: Callable[[], optax.GradientTransformationExtraArgs]
    extra: Callable[[Any], dict[str, Any]]  # of a batch
    outside_masks: bool = False  # calls a loss with its params, so it stands before masks and partitions
    factory: Any = None  # for inject_hyperparams
    arguments: Any = ()  # keyword arguments for inject_hyperparams
    static: tuple[str, ...] = ()


def loss_fn(params, batch):
    logits = jnp.tanh(batch["image"] @ params["w"] + params["b"])
    return jnp.mean((logits.sum(-1) - batch["label"]) ** 2)


def make_params(dtype=jnp.float32):
    w = jnp.linspace(-0.5, 0.7, 12, dtype=jnp.float32).reshape(4, 3)
    return {"w": w.astype(dtype), "b": jnp.linspace(-0.1, 0.2, 3).astype(dtype)}


def make_batch(examples=16, dtype=jnp.float32, seed=0):
    image, label = jax.random.uniform(jax.random.key(seed), (2, examples, 4))
    return {"image": image.astype(dtype), "label": label[:, 0].astype(dtype)}


def attack():
    return hessabs.attacks.fgsm(0.1)


CASES = {
    "adversarial_gradient": Case(
        make=lambda: hessabs.adversarial_gradient(attack(), max_fraction=0.5),
        extra=lambda batch: {"loss_fn": loss_fn, "batch": batch, "adversarial_fraction": jnp.float32(0.25)},
        outside_masks=True,
        factory=hessabs.adversarial_gradient,
        arguments={"attack": attack(), "max_fraction": 0.5},
        static=("attack", "max_fraction"),
    ),
    "scale_by_batch_size": Case(
        make=hessabs.scale_by_batch_size,
        extra=lambda batch: {"lr_scale": jnp.float32(2.0)},
        factory=hessabs.scale_by_batch_size,
    ),
}


def gradient(params, batch):
    return jax.grad(loss_fn)(params, batch)
