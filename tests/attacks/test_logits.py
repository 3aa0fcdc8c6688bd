"""Logits by class."""

import jax
import jax.numpy as jnp
import numpy as np

from hessabs.attacks.losses.criteria import take_class


def test_take_class_is_an_index():
    logits = jnp.array([[0.1, -jnp.inf, 3.0], [-2.5, 4.0, 1e30]])
    classes = np.array([2, 0])

    def total(z):
        return jnp.sum(take_class(z, classes))

    taken, beyond, gradient = jax.jit(
        lambda z: (take_class(z, classes), take_class(z, np.array([1, 5])), jax.grad(total)(z))
    )(logits)
    np.testing.assert_array_equal(taken, np.asarray(logits)[np.arange(2), classes])
    np.testing.assert_array_equal(beyond, [-np.inf, np.nan])
    np.testing.assert_array_equal(gradient, [[0, 0, 1], [1, 0, 0]])
