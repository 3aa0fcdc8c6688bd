"""Layers: pooling against XLA's own, and where parameters start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hessabs.models import layers

POOLS = [(3, 2, 1), (2, 2, 0), (3, 2, 0), (2, 1, 0)]


def windowed_maximum(x, window, stride, padding):
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_max_pool_is_the_windowed_maximum(pool, size):
    """Bit for bit, gradient too; half of the entries are equal, so who gets the gradient shows."""
    x = nn.relu(jax.random.normal(jax.random.key(0), (2, size, size, 3)))
    expected, pull_expected = jax.vjp(lambda x: windowed_maximum(x, *pool), x)
    got, pull = jax.vjp(lambda x: layers.max_pool(x, *pool), x)
    np.testing.assert_array_equal(got, expected)
    # Small whole numbers: windows overlap, and their sums are exact in any order.
    weights = jax.random.randint(jax.random.key(1), got.shape, -8, 8).astype(jnp.float32)
    np.testing.assert_array_equal(pull(weights)[0], pull_expected(weights)[0])


def test_max_pool_elsewhere_is_xlas_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jaxpr = jax.make_jaxpr(lambda x: layers.max_pool(x, 3, 2, 1))(jnp.zeros((1, 8, 8, 1)))
    assert "reduce_window" in str(jaxpr)


def test_max_pool_has_a_hessian():
    """The maximum is piecewise linear: the Hessian of the sum of its squares is that of a selection."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))
    hessian = jax.hessian(lambda x: jnp.sum(layers.max_pool(x.reshape(1, 4, 4, 1), 2, 2) ** 2))(x.ravel())
    chosen = np.isin(np.asarray(x.ravel()), np.asarray(layers.max_pool(x, 2, 2)))
    np.testing.assert_array_equal(hessian, 2 * np.diag(chosen))


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = layers.conv(x, 64, 3, use_bias=True, dtype=None)
        return layers.dense(x.reshape(1, -1), 400, dtype=None)


def test_default_initialisation_is_pytorchs():
    """Uniform in plus or minus 1 / sqrt(fan_in), kernels and biases."""
    params = Layers().init(jax.random.key(0), jnp.zeros((1, 4, 4, 5)))["params"]
    for name, fan_in in (("Conv_0", 9 * 5), ("Dense_0", 16 * 64)):
        for leaf in params[name].values():
            bound = fan_in**-0.5
            assert float(jnp.abs(leaf).max()) <= bound
            # Of n uniform draws the largest is below a fraction f of the bound with chance f ** n.
            assert float(jnp.abs(leaf).max()) > bound * 1e-6 ** (1 / leaf.size)
            assert abs(float(leaf.std()) / bound * 3**0.5 - 1) < 5 / leaf.size**0.5


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return layers.Dropout(0.25)(x, train)


def test_dropout_follows_from_its_state():
    x = jnp.arange(1.0, 401.0)
    state = Dropped().init(jax.random.key(0), x)
    step = jax.jit(lambda state: Dropped().apply(state, x, train=True, mutable=["dropout"]))
    first, after = step(state)
    second, _ = step(after)
    np.testing.assert_array_equal(step(state)[0], first)
    assert not np.array_equal(first, second)
    kept = np.asarray(first) != 0
    np.testing.assert_allclose(first, np.where(kept, x / 0.75, 0), rtol=1e-6)
    assert abs(kept.mean() - 0.75) < 5 * (0.75 * 0.25 / 400) ** 0.5
    np.testing.assert_array_equal(Dropped().apply(state, x), x)
    other = Dropped().init(jax.random.key(1), x)
    assert not np.array_equal(step(other)[0], first)
    for calls, want in ((0, state), (2, step(after)[1])):
        later = jax.jit(layers.later_keys)(state, calls)
        np.testing.assert_array_equal(later["dropout"]["Dropout_0"]["key"], want["dropout"]["Dropout_0"]["key"])
    assert layers.later_keys({"batch_stats": 1}, 3) == {"batch_stats": 1}
