"""The examples of a batch: counted on all leaves, never on the one that happens to come first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import batch_axis

KEYS = [jax.random.key(0), jax.random.PRNGKey(0), jax.random.PRNGKey(0, impl="rbg"), 0.5, np.float32(2), None]


@pytest.mark.parametrize("constant", KEYS)
def test_keys_and_scalars_belong_to_the_whole_batch(constant):
    batch = {"a": constant, "x": jnp.arange(6.0).reshape(3, 2)}
    assert batch_axis.num_examples(batch) == 3
    part = batch_axis.map_examples(lambda x: x[1:], batch)
    assert part["a"] is constant
    np.testing.assert_array_equal(part["x"], [[2, 3], [4, 5]])


def test_leaves_that_disagree_are_both_named():
    batch = {"class_weights": jnp.ones(10), "x": jnp.ones((3, 2))}
    with pytest.raises(ValueError, match=r"\['class_weights'\] has 10 .*\['x'\] has 3 .*Partial"):
        batch_axis.num_examples(batch)


def test_a_batch_without_examples_is_refused():
    for batch in (None, {"key": jax.random.key(0)}, 3.0):
        with pytest.raises(ValueError, match="no leaf with a leading example axis"):
            batch_axis.num_examples(batch)


def test_keys_of_every_example_are_cut_with_them():
    batch = (jax.random.split(jax.random.key(0), 3), np.ones(3))
    assert batch_axis.map_examples(lambda x: x[:2], batch)[0].shape == (2,)


def test_two_unsigned_labels_are_no_key():
    batch = {"label": np.array([1, 0], np.uint32), "x": np.ones((2, 5))}
    assert batch_axis.carries_examples(batch) == [True, True]


def test_counts_under_jit():
    assert jax.jit(lambda b: jnp.float32(batch_axis.num_examples(b)))((jnp.ones(4), jnp.float32(1))) == 4
