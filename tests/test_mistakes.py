"""The likeliest mistakes of a new user: each ends in a sentence that says how to mend it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
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


def fit(examples=BATCH, *, network=None, optimizer=None, rule=None, **options):
    pair = examples if isinstance(examples, tuple) else (examples, examples)
    task = training.tasks.linen(network or nn.Dense(2), pair)
    return training.fit(task, optimizer or optax.sgd(0.1), rule or batch_size.constant(4), epochs=1, **options)


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x), x


def masked_guard():
    tx = optax.masked(hessabs.guarded_learning_rate(1.0), {"a": True, "b": False})
    params = {"a": W, "b": W}
    tx.update(params, tx.init(params), params, loss_fn=lambda p, x: jnp.sum(p["a"]), batch=X)


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
    "one set for two": (
        lambda: training.tasks.linen(nn.Dense(2), BATCH),
        "or the pair (train, test), got one dict",
    ),
    "three sets for two": (
        lambda: training.tasks.linen(nn.Dense(2), (BATCH,) * 3),
        "(train, test), got 3 of them",
    ),
    "labels of floats": (
        lambda: fit({**BATCH, "label": jnp.zeros(8)}),
        "needs whole numbers under the key 'label', got float32; make it int32",
    ),
    "no labels": (
        lambda: fit({"image": X}),
        "needs whole numbers under the key 'label', got the keys ['image'",
    ),
    "names among the numbers": (
        lambda: fit({**BATCH, "name": np.array(["a"] * 8)}),
        "A source must hold numbers, got <U1 at 'name'",
    ),
    "two outputs": (lambda: fit(network=Two()), "must return logits, one array, got a tuple"),
    "images that are standardised": (
        lambda: fit({**BATCH, "image": 4 * X - 3}),
        "lie in [-1, -1], outside of its `bounds` (0.0, 1.0), which attacks keep",
    ),
    "a number for a rule": (
        lambda: fit(rule=16),
        "`rule` must be a controller of hessabs.batch_size, constant(128)",
    ),
    "a batch of half examples": (
        lambda: batch_size.constant(32.5),
        "must be a whole number of examples, got 32.5",
    ),
    "batches that are no whole micro-batches": (
        lambda: fit(rule=batch_size.timer(4, 6, every=8)),
        "must be a multiple of micro_batch_size=4, got 6; take 4, or micro_batch_size=2",
    ),
    "a dict for settings": (lambda: fit(settings={"ema": 3}), "`settings` must be RunSettings"),
    "an attack for an objective": (
        lambda: fit(objective=attacks.fgsm(0.1)),
        "`objective` must be one of training.objectives",
    ),
    "a dict for durability": (lambda: fit(durability={"resume": True}), "`durability` must be a Durability"),
    "a callback that is no list": (lambda: fit(callbacks=print), "`callbacks` must be a list"),
    "an optimiser that evaluates the loss": (
        lambda: fit(optimizer=optax.lbfgs()),
        "`optimizer` cannot be used by fit",
    ),
    "optax.MultiSteps": (
        lambda: fit(optimizer=optax.MultiSteps(optax.sgd(0.1), 2)),
        "or its `.gradient_transformation()`",
    ),
    "a guard of some of the params": (masked_guard, "put it outside of optax.masked"),
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
