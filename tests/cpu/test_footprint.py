"""The memory that a row takes, read off programs."""

import jax
import jax.numpy as jnp

from hessabs.cpu import footprint


def test_bytes_per_row_look_into_loops():
    def function(x):
        return jax.lax.scan(lambda carry, _: (jnp.sum(jnp.outer(carry, carry), 1), None), x, None, 3)[0]

    assert footprint.bytes_per_row(jax.jit(function), 8, jnp.ones(8)) == 8 * 4


def test_arrays_without_an_example_axis_weigh_less_the_more_rows_there_are():
    function = jax.jit(lambda x: jnp.sum(x @ jnp.ones((4, 2)) @ jnp.ones((2, 100))))
    for num_rows, want in ((1, 800), (1000, 400)):
        shape = jax.ShapeDtypeStruct((num_rows, 4), jnp.float32)
        assert footprint.bytes_per_row(function, num_rows, shape) == want
