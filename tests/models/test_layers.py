"""Layers: pooling against XLA's own, and where parameters start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from hessabs.models import layers

pytestmark = pytest.mark.sampled

POOLS = [((3, 2, 1), 7), ((3, 2, 1), 8), ((2, 2, 0), 7), ((3, 2, 0), 8), ((2, 1, 0), 7)]


def windowed_maximum(x, window, stride, padding):
    return nn.max_pool(x, (window, window), strides=(stride, stride), padding=[(padding, padding)] * 2)


@pytest.mark.parametrize(("pool", "size"), POOLS, ids=str)
def test_max_pool_is_the_windowed_maximum(pool, size):
    """Bit for bit, gradient too; half of the entries are equal, so who gets the gradient shows."""
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(2, size, size, 3)), 0).astype(np.float32)
    shape = jax.eval_shape(lambda x: windowed_maximum(x, *pool), x).shape
    # Small whole numbers: windows overlap, and their sums are exact in any order.
    weights = rng.integers(-8, 8, shape).astype(np.float32)

    @jax.jit
    def both(x):
        results = [jax.vjp(lambda x, f=f: f(x, *pool), x) for f in (windowed_maximum, layers.max_pool)]
        return [(value, pull(weights)[0]) for value, pull in results]

    expected, got = both(x)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_max_pool_elsewhere_is_xlas_own(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jaxpr = jax.make_jaxpr(lambda x: layers.max_pool(x, 3, 2, 1))(jnp.zeros((1, 8, 8, 1)))
    assert "reduce_window" in str(jaxpr)


def test_max_pool_has_a_hessian():
    """The maximum is piecewise linear: the Hessian of the sum of its squares is that of a selection."""
    x = np.random.default_rng(0).normal(size=16).astype(np.float32)
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(layers.max_pool(x.reshape(1, 4, 4, 1), 2, 2) ** 2)))(x)
    chosen = np.isin(x, x.reshape(2, 2, 2, 2).max((1, 3)))
    np.testing.assert_array_equal(hessian, 2 * np.diag(chosen))


class Layers(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = layers.conv(x, 64, 3, use_bias=True, dtype=None)
        return layers.dense(x.reshape(1, -1), 400, dtype=None)


def test_default_initialisation_is_pytorchs():
    """Uniform in plus or minus 1 / sqrt(fan_in), kernels and biases."""
    params = jax.jit(Layers().init)(jax.random.key(0), jnp.zeros((1, 4, 4, 5)))["params"]
    for name, fan_in in (("Conv_0", 9 * 5), ("Dense_0", 16 * 64)):
        for leaf in params[name].values():
            bound, leaf = fan_in**-0.5, np.asarray(leaf)
            assert np.abs(leaf).max() <= bound
            # Of n uniform draws the largest is below a fraction f of the bound with chance f ** n.
            assert np.abs(leaf).max() > bound * 1e-6 ** (1 / leaf.size)
            assert abs(float(leaf.std()) / bound * 3**0.5 - 1) < 5 / leaf.size**0.5
