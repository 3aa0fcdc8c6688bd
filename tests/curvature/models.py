"""The same small network in the libraries that people write models in."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 3))


class Linen(nn.Module):
    boxed: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.lecun_normal()
        if self.boxed:
            init = nn.with_partitioning(init, (None, None))
        x = nn.LayerNorm()(nn.tanh(nn.Dense(4, kernel_init=init, name="body")(x)))
        return nn.Dense(2, kernel_init=init, name="head")(x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.LayerNorm()(x + nn.tanh(nn.Dense(3)(x))), None


class Scanned(nn.Module):
    """Three layers in one array each, and a head."""

    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(name="steps")(x, None)
        return nn.Dense(2, name="head")(x)


class Nnx(nnx.Module):
    def __init__(self, rngs, *, batch_norm=False, dropout=False):
        self.body = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs) if batch_norm else nnx.LayerNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs) if dropout else None
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        x = self.norm(jnp.tanh(self.body(x)))
        return self.head(x if self.dropout is None else self.dropout(x))


class Equinox(eqx.Module):
    body: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    activation: object = jnp.tanh

    def __call__(self, x):
        return jax.vmap(lambda one: self.head(self.norm(self.activation(self.body(one)))))(x)


def _haiku(x):
    x = hk.LayerNorm(-1, True, True, name="norm")(jnp.tanh(hk.Linear(4, name="body")(x)))
    return hk.nets.MLP([2], name="head")(x)


def equinox():
    keys = jax.random.split(KEY)
    return Equinox(eqx.nn.Linear(3, 4, key=keys[0]), eqx.nn.LayerNorm(4), eqx.nn.Linear(4, 2, key=keys[1]))


@functools.cache
def make(library):
    """Params and ``model_fn(params, x)``, in float32 whichever test asks first."""
    with jax.enable_x64(False):
        return _make(library)


def _make(library):
    if library in ("linen", "boxed", "scanned"):
        model = Scanned() if library == "scanned" else Linen(library == "boxed")
        params = jax.jit(model.init)(KEY, X)["params"]
        # Flax unboxes what it applies itself; the params stay as they are.
        return params, lambda p, x: model.apply({"params": p}, x)
    if library == "nnx":
        graphdef, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
        return params, lambda p, x: nnx.merge(graphdef, p, rest)(x)
    if library == "equinox":
        params, static = eqx.partition(equinox(), eqx.is_inexact_array)
        return params, lambda p, x: eqx.combine(p, static)(x)
    model = hk.without_apply_rng(hk.transform(_haiku))
    return jax.jit(model.init)(KEY, X), model.apply


def loss_of(model_fn):
    """Mean cross-entropy on the classes 0, 1, 0, ..."""

    def loss(params, x):
        log_p = jax.nn.log_softmax(model_fn(params, x))
        return -jnp.mean(log_p[jnp.arange(len(x)), jnp.arange(len(x)) % 2])

    return loss
