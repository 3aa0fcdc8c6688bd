"""One task of each kind, small, with params that a few steps of gradient descent have found."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from hessabs import data
from hessabs.training import tasks
from hessabs.training.task import LossOutput


class Run(NamedTuple):
    task: object
    params: object
    model_state: object
    record: dict


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.tanh(nn.Dense(6)(x.reshape(len(x), -1))))


class Next(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(5)(nn.Embed(5, 3)(tokens))


@functools.cache
def images(seed=0):
    digits = data.load("digits", num_test=130)
    digits = digits._replace(train=data.as_source(digits.train.take(np.arange(300))))
    return descend(tasks.linen(Small(), digits), seed, steps=60, lr=0.5)


@functools.cache
def tokens():
    rng = np.random.default_rng(0)

    def examples(number):
        walk = rng.integers(0, 5, (number, 1)) + np.arange(8)  # mostly, the next token is one more
        walk = np.where(rng.random(walk.shape) < 0.2, rng.integers(0, 5, walk.shape), walk % 5)
        return {"tokens": walk.astype(np.int32), "mask": (rng.random((number, 7)) < 0.6).astype(np.float32)}

    return descend(tasks.linen(Next(), (examples(60), examples(23)), num_classes=5), 0, steps=30, lr=1.0)


@functools.cache
def plain():
    rng = np.random.default_rng(1)

    def examples(number):
        x = rng.normal(size=(number, 4)).astype(np.float32)
        return {"x": x, "y": np.sin(x.sum(1)), "rows": (rng.random(number) < 0.7).astype(np.float32)}

    def loss(params, model_state, batch, key, train):
        weight = batch["weight"] * batch["rows"]
        errors = jnp.tanh(batch["x"] @ params["w"]) + params["b"] - batch["y"]
        total = jnp.sum(weight)
        means = [jnp.sum(weight * e) / jnp.maximum(total, 1e-9) for e in (errors**2, jnp.abs(errors))]
        return LossOutput(means[0], total, model_state, {"absolute": means[1]})

    params = {"b": jnp.zeros(()), "w": jnp.full(4, 0.1)}
    return descend(tasks.plain(params, loss, examples(50), examples(19)), 0, steps=5, lr=0.1)


def whole(source, task):
    """A source as one prepared batch."""
    batch = source.take(np.arange(len(source)))
    return task.prepare({**batch, "weight": np.ones(len(source), np.float32)})


def descend(task, seed, *, steps, lr):
    params, model_state = jax.jit(task.init)(jax.random.key(seed))
    batch = whole(task.train, task)

    @jax.jit
    def step(params):
        gradient = jax.grad(lambda p: task.loss(p, model_state, batch, jax.random.key(0), True).mean)(params)
        return jax.tree.map(lambda p, g: p - lr * g, params, gradient)

    for _ in range(steps):
        params = step(params)
    return Run(task, params, model_state, {})


def places(params, name):
    """Where the params of a layer lie in the vector of all."""
    chosen = {n: jax.tree.map(lambda x, n=n: 0 * x + (n == name), params[n]) for n in params}
    return np.flatnonzero(jax.flatten_util.ravel_pytree(chosen)[0])
