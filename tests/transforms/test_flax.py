"""Every transformation trains a flax NNX model and a Linen one."""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.transforms.cases import CASES, make_batch

pytestmark = pytest.mark.sampled

nnx = pytest.importorskip("flax.nnx")
nn = pytest.importorskip("flax.linen")


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Dense(3)(x)))[:, 0]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))[:, 0]


def train(case, loss_fn, params, steps=4):
    def extra(batch):
        found = case.extra(batch)
        return {**found, "loss_fn": loss_fn} if "loss_fn" in found else found

    tx = optax.chain(case.make(), optax.sgd(0.02))
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        gradient = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(gradient, state, params, **extra(batch))
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state, make_batch())
    return params


@pytest.mark.parametrize("name", CASES)
def test_linen(name):
    model = Linen()
    params = jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 4)))

    def loss_fn(params, batch):
        return jnp.mean((model.apply(params, batch["image"]) - batch["label"]) ** 2)

    trained = train(CASES[name], loss_fn, params)
    assert float(loss_fn(trained, make_batch())) < float(loss_fn(params, make_batch()))


@pytest.mark.parametrize("name", CASES)
def test_nnx(name):
    graph, params = nnx.split(Net(nnx.Rngs(0)), nnx.Param)

    def loss_fn(params, batch):
        return jnp.mean((nnx.merge(graph, params)(batch["image"]) - batch["label"]) ** 2)

    trained = train(CASES[name], loss_fn, params)
    assert isinstance(trained, nnx.State)
    assert float(loss_fn(trained, make_batch())) < float(loss_fn(params, make_batch()))
