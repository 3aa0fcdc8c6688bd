"""Every transformation of the library, with the extra arguments that it needs, for the contract suite."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import hessabs


class Case(NamedTuple):
    make: Callable[..., optax.GradientTransformationExtraArgs]  # takes an axis_name where it calls a loss
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


def rule():
    """One that has grown by the second update of the suite, whose batches have 16 examples."""
    return hessabs.batch_size.timer(16, 64, every=16)


def measured_rule():
    return hessabs.batch_size.stability_limited(16, 64, lr=0.01, measure_every=16)


def noise_rule():
    return hessabs.batch_size.gradient_noise_scale(16, 64, measure_every=16)


def schedule(step):
    return 2.0 + step


def adam_by_examples(batch_size):
    return hessabs.by_examples(optax.scale_by_adam, batch_size=batch_size)(b1=0.9, b2=0.99)


CASES = {
    "adversarial_gradient": Case(
        make=functools.partial(hessabs.adversarial_gradient, attack(), max_fraction=0.5),
        extra=lambda batch: {"loss_fn": loss_fn, "batch": batch, "adversarial_fraction": jnp.float32(0.25)},
        outside_masks=True,
        factory=hessabs.adversarial_gradient,
        arguments={"attack": attack(), "max_fraction": 0.5},
        static=("attack", "max_fraction", "axis_name"),
    ),
    "guarded_learning_rate": Case(
        make=functools.partial(hessabs.guarded_learning_rate, 8.0, flip_sign=False),
        extra=lambda batch: {"loss_fn": loss_fn, "batch": batch},
        outside_masks=True,
        factory=hessabs.guarded_learning_rate,
        arguments={"learning_rate": 8.0, "flip_sign": False},
        static=("threshold", "every", "examples", "axis_name", "flip_sign"),
    ),
    "scale_by_batch_size": Case(
        make=hessabs.scale_by_batch_size,
        extra=lambda batch: {"lr_scale": jnp.float32(2.0)},
        factory=hessabs.scale_by_batch_size,
    ),
    "adaptive_batch_size": Case(
        make=lambda: hessabs.adaptive_batch_size(rule()),
        extra=lambda batch: {"eigenvalue": jnp.float32(1.0)},
        factory=hessabs.adaptive_batch_size,
        arguments={"controller": rule()},
        static=("controller",),
    ),
    "adaptive_batch_size_measured": Case(
        make=lambda: hessabs.adaptive_batch_size(measured_rule()),
        extra=lambda batch: {"eigenvalue": jnp.float32(1.0)},
        factory=hessabs.adaptive_batch_size,
        arguments={"controller": measured_rule()},
        static=("controller",),
    ),
    "self_measuring_batch_size": Case(
        make=functools.partial(
            hessabs.self_measuring_batch_size, measured_rule(), key=jax.random.key(0), max_iters=3
        ),
        extra=lambda batch: {"loss_fn": loss_fn, "batch": batch},
        outside_masks=True,
        factory=hessabs.self_measuring_batch_size,
        arguments={"controller": measured_rule(), "key": jax.random.key(0), "max_iters": 3},
        static=("controller", "key", "max_iters", "rtol", "axis_name"),
    ),
    "accumulate": Case(
        make=lambda: hessabs.accumulate(optax.scale(2.0), num_micro_batches=2),
        extra=lambda batch: {"weight": jnp.float32(16.0)},
        factory=hessabs.accumulate,
        arguments={"inner": optax.scale(2.0), "num_micro_batches": 2},
        static=("inner", "num_micro_batches", "micro_batch_size", "statistics"),
    ),
    "accumulate_statistics": Case(
        make=lambda: hessabs.accumulate(
            hessabs.adaptive_batch_size(noise_rule()), micro_batch_size=8, statistics=True
        ),
        extra=lambda batch: {},
        factory=hessabs.accumulate,
        arguments={
            "inner": hessabs.adaptive_batch_size(noise_rule()),
            "micro_batch_size": 8,
            "statistics": True,
        },
        static=("inner", "num_micro_batches", "micro_batch_size", "statistics"),
    ),
    "by_examples": Case(
        make=lambda: adam_by_examples(8),
        extra=lambda batch: {"num_examples": jnp.int32(16)},
        factory=adam_by_examples,
        arguments={"batch_size": 8},
        static=("batch_size",),
    ),
    "by_samples": Case(
        make=lambda: hessabs.by_samples(schedule, 16, flip_sign=False),
        extra=lambda batch: {"batch_size": jnp.int32(16)},
        factory=hessabs.by_samples,
        arguments={"schedule": schedule, "examples_per_step": 16, "flip_sign": False},
        static=("schedule", "examples_per_step", "flip_sign"),
    ),
}


def gradient(params, batch):
    return jax.grad(loss_fn)(params, batch)
