"""The likeliest mistakes of a new user: each ends in a sentence that says how to mend it."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import hessabs
from hessabs import attacks, batch_size, curvature, data, training

W, X = jnp.ones(3), jnp.full((8, 3), 0.5)
BATCH = {"image": X, "label": jnp.zeros(8, jnp.int32)}
KEY = jax.random.key(0)


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


def image_loss(w, batch):
    return jnp.mean((batch["image"] @ w) ** 2)


def update(tx):
    return tx.update(W, tx.init(W), W)


def batch_norm_in_training_mode():
    model = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    function = lambda p, x: jnp.mean(nnx.merge(graphdef, p, rest)(x) ** 2)  # noqa: E731
    return curvature.hvp(function, params, X, params)


def three_devices():
    parts = training.assemble({"devices": 3, "batch_size": 128, "epochs": 1, "lr_decay_epochs": ()})
    training.fit(parts.task, parts.optimizer, parts.rule, **parts.options)


RULE = batch_size.hessian_adaptive(8, 32, measure_every=8)
# What is done wrong: (how, what it says).
MISTAKES = {
    "a loss of the params alone": (
        lambda: hessabs.hvp(lambda w: jnp.sum(w**2), W, X, W),
        "takes (w), but a loss is called as `loss_fn(params, batch)`",
    ),
    "a loss with more arguments": (
        lambda: hessabs.hvp(lambda w, x, y: jnp.sum(w**2), W, X, W),
        "bind what else it needs with jax.tree_util.Partial",
    ),
    "a loss by example": (
        lambda: hessabs.hvp(lambda w, x: x @ w, W, X, W),
        "the mean over the batch, got shape (8,)",
    ),
    "a loss and its logits": (
        lambda: hessabs.hvp(lambda w, x: (loss(w, x), x), W, X, W),
        "pass `has_aux=True`",
    ),
    "params of integers": (
        lambda: hessabs.hvp(loss, jnp.ones(3, int), X, W),
        "must hold floating-point arrays",
    ),
    "variables of Linen": (
        lambda: hessabs.hessian(loss, {"params": W, "batch_stats": W}, X),
        'give `variables["params"]`',
    ),
    "batch norm in training mode": (
        batch_norm_in_training_mode,
        "Call `model.eval()` before the model is split",
    ),
    "a vector of another shape": (
        lambda: hessabs.hvp(loss, W, X, jnp.ones(4)),
        "float32[4] and `params` has float32[3]",
    ),
    "a generator for batches": (lambda: curvature.dataset_hessian(loss, W, (x for x in [X])), "pass a list"),
    "a batch without an example axis": (
        lambda: attacks.fgsm(0.1)(image_loss, W, {"image": jnp.float32(1.0), "label": jnp.int32(0)}),
        "The batch has no examples, got inputs of shape ()",
    ),
    "leaves of different lengths": (
        lambda: curvature.empirical_fisher(lambda w, b: loss(w, b[0]), W, (X, jnp.ones(5)))(W),
        "must share their leading example axis",
    ),
    "no eigenvalue told": (
        lambda: update(hessabs.adaptive_batch_size(RULE)),
        "call update(gradient, state, params, eigenvalue=",
    ),
    "no lr_scale told": (lambda: update(hessabs.scale_by_batch_size()), "lr_scale=controller_state.lr_scale"),
    "no number of micro-batches told": (
        lambda: update(hessabs.accumulate(optax.sgd(0.1))),
        "num_micro_batches=...",
    ),
    "no loss told": (
        lambda: update(hessabs.adversarial_gradient(attacks.fgsm(0.1))),
        "call update(gradient, state, params, loss_fn=..., batch=...)",
    ),
    "no key": (lambda: attacks.pgd(0.1)(image_loss, W, BATCH), "pass `key=jax.random.key(seed)`"),
    "a number for a key": (lambda: attacks.pgd(0.1)(image_loss, W, BATCH, 0), "must be a random key, got 0"),
    "images of integers": (
        lambda: attacks.fgsm(0.1)(image_loss, W, {**BATCH, "image": jnp.ones((8, 3), jnp.uint8)}),
        "scale them to [0, 1] as float32 first",
    ),
    "images up to 255": (
        lambda: attacks.fgsm(0.1)(image_loss, W, {**BATCH, "image": 255 * X}),
        "pass the bounds of the batch",
    ),
    "epsilon in grey levels": (lambda: attacks.fgsm(8.0), "8 / 255 for eight grey levels of images in [0, 1]"),
    "data that are not prepared": (
        lambda: data.load("cifar10", data_dir="nowhere"),
        "run `hessabs data prepare cifar10`",
    ),
    "a misspelt network": (lambda: training.assemble({"model": "resnet"}), "the nearest are 'resnet20'"),
    "a setting of another method": (lambda: training.assemble({"method": "bl", "patience": 3}), "leave it out"),
    "micro-batches that do not divide": (
        lambda: training.assemble({"batch_size": 100, "micro_batch_size": 64}),
        "`micro_batch_size` must divide batch_size=100, got 64",
    ),
    "devices that do not divide": (
        three_devices,
        "must be a multiple of the 3 devices that it is split over, got 128",
    ),
    "a first batch beyond the largest": (
        lambda: batch_size.hessian_adaptive(128, 64, measure_every=10),
        "`initial` must lie in [1, maximum=64], got 128",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_says_how_to_mend_it(name):
    make, message = MISTAKES[name]
    with pytest.raises(Exception, match=re.escape(message)) as caught:  # warnings are errors here
        make()
    assert caught.type in (ValueError, UserWarning) or issubclass(caught.type, data.DatasetNotFoundError)
