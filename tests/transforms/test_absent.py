"""A micro-batch of weight 0 is absent, whatever its gradient; the examples seen reach the inner update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessabs
from hessabs.batch_size import gradient_statistics

pytestmark = pytest.mark.sampled

NAN = float("nan")


def keeper():
    """A transformation that keeps what it was told of the batch in its state."""

    def init(params):
        del params
        nothing = hessabs.batch_size.GradientStatistics(*[jnp.zeros((), jnp.int32)] * 2, *[jnp.zeros(())] * 2)
        return {"calls": jnp.zeros((), jnp.int32), "examples": jnp.zeros((), jnp.int32), "told": nothing}

    def update(updates, state, params=None, *, num_examples=-1, gradient_statistics=None, **extra_args):
        told = state["told"] if gradient_statistics is None else gradient_statistics
        return updates, {"calls": state["calls"] + 1, "examples": jnp.asarray(num_examples), "told": told}

    return optax.GradientTransformationExtraArgs(init, update)


def run(tx, micro_batches, jitted=True):
    """Feed (gradient, extra arguments); return the updates and the last state."""
    w, out = jnp.zeros(2), []
    state, update = tx.init(w), jax.jit(tx.update) if jitted else tx.update
    for gradient, extra in micro_batches:
        updates, state = update(jnp.asarray(gradient), state, w, **extra)
        out.append(np.asarray(updates))
    return out, state


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("poison", [NAN, float("inf"), 1e30])
def test_an_absent_gradient_leaves_no_trace_and_is_no_part_of_the_statistics(poison, jitted):
    tx = hessabs.accumulate(keeper(), micro_batch_size=8, statistics=True)
    parts = [([1.0, 2.0], 1.0), ([poison, poison], 0.0), ([3.0, -2.0], 1.0), ([2.0, 6.0], 1.0)]
    out, state = run(tx, [(g, {"weight": w, "num_micro_batches": 4}) for g, w in parts], jitted)
    np.testing.assert_allclose(out[-1], [2.0, 2.0])
    want = gradient_statistics(jnp.array([[1.0, 2.0], [3.0, -2.0], [2.0, 6.0]]), 8)
    np.testing.assert_allclose(state.inner_state["told"][:4], want[:4], rtol=1e-6)
    assert state.inner_state["told"].num_parts == 3
    assert state.inner_state["examples"] == 24
    assert bool(state.updated)


def test_unequal_weights_and_a_number_of_examples_for_each():
    tx = hessabs.accumulate(keeper(), num_micro_batches=3)
    parts = [([1.0, 0.0], 100.0, 5), ([NAN, 0.0], 0.0, 4), ([5.0, 0.0], 300.0, 7)]
    out, state = run(tx, [(g, {"weight": w, "num_examples": n}) for g, w, n in parts])
    np.testing.assert_allclose(out[-1], [4.0, 0.0])
    assert state.inner_state["examples"] == 12


def test_the_number_of_examples_is_passed_where_it_is_known_alone():
    _, state = run(hessabs.accumulate(keeper(), num_micro_batches=2), [([1.0, 1.0], {})] * 2)
    assert state.inner_state["examples"] == -1


def test_the_next_window_counts_its_own_examples():
    tx = hessabs.accumulate(keeper(), micro_batch_size=8)
    _, state = run(tx, [([1.0, 1.0], {"num_micro_batches": k}) for k in (3, 3, 3, 2, 2)])
    assert (int(state.inner_state["calls"]), int(state.inner_state["examples"])) == (2, 16)


def test_a_window_of_absent_micro_batches_makes_no_update():
    tx = hessabs.accumulate(optax.adam(0.1), num_micro_batches=2)
    first = [([1.0, -1.0], {"weight": 1.0})] * 2
    _, before = run(tx, first)
    out, after = run(tx, [*first, *[([NAN, 1.0], {"weight": 0.0})] * 2])
    np.testing.assert_array_equal(out[-1], [0.0, 0.0])
    assert (bool(before.updated), bool(after.updated)) == (True, False)
    jax.tree.map(np.testing.assert_array_equal, before.inner_state, after.inner_state)
    out, _ = run(tx, [*first, *[([NAN, 1.0], {"weight": 0.0})] * 2, *first])
    want, _ = run(tx, first + first)
    np.testing.assert_array_equal(out[-1], want[-1])


def test_a_weight_of_nan_shows():
    out, _ = run(hessabs.accumulate(optax.identity(), num_micro_batches=1), [([1.0, 1.0], {"weight": NAN})])
    assert np.isnan(out[0]).all()


def test_numbers_below_one():
    tx = hessabs.accumulate(optax.identity())
    state = tx.init(jnp.zeros(()))
    with pytest.raises(ValueError, match="`num_micro_batches` must be at least 1, got 0"):
        tx.update(jnp.ones(()), state, num_micro_batches=0)
    updates, state = jax.jit(tx.update)(jnp.ones(()), state, num_micro_batches=jnp.int32(0))
    assert (float(updates), bool(state.updated)) == (1.0, True)


def test_a_micro_batch_size_needs_one_rule_in_inner():
    rule = hessabs.adaptive_batch_size(hessabs.batch_size.constant(16))
    for inner, found in ((optax.sgd(0.1), "no"), (optax.chain(rule, rule), "2")):
        tx = hessabs.accumulate(inner, micro_batch_size=8)
        with pytest.raises(ValueError, match=rf"micro_batch_size=8\).*finds {found} adaptive_batch_size"):
            tx.update(jnp.ones(()), tx.init(jnp.ones(())))
        updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())), num_micro_batches=1)  # needs no rule
        assert float(updates) != 0
