"""What every transformation of the library does inside optax, whatever it computes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.transforms.cases import CASES, gradient, make_batch, make_params

pytestmark = pytest.mark.sampled


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def place(case, wrap, inner=None):
    """The transformation inside a wrapper; one that calls a loss stands before it, as its docstring says."""
    inner = optax.sgd(0.1) if inner is None else inner
    if case.outside_masks:
        return optax.chain(case.make(), wrap(inner))
    return wrap(optax.chain(case.make(), inner))


def run(tx, case, params=None, steps=3):
    params = make_params() if params is None else params
    state = tx.init(params)

    @jax.jit
    def update(params, state, batch):
        updates, state = tx.update(gradient(params, batch), state, params, **case.extra(batch))
        return optax.apply_updates(params, updates), state

    for step in range(steps):
        params, state = update(params, state, make_batch(dtype=params["w"].dtype, seed=step))
    return params, state


def plain(case):
    """The reference: the transformation before SGD in one chain."""
    if id(case) not in _PLAIN:
        _PLAIN[id(case)] = run(optax.chain(case.make(), optax.sgd(0.1)), case)[0]
    return _PLAIN[id(case)]


_PLAIN = {}  # by the identity of a case, which lives as long as the table


@pytest.fixture(scope="module")
def sgd():
    """What SGD alone does, whose extra arguments are ignored."""
    return run(optax.with_extra_args_support(optax.sgd(0.1)), CASES["scale_by_batch_size"])[0]


def test_it_changes_what_sgd_alone_would_do(case, sgd):
    assert not np.allclose(plain(case)["w"], sgd["w"], rtol=1e-4)


def test_chain_is_the_transformation_and_then_the_next_and_ignores_unknown_arguments(case):
    params, batch = make_params(), make_batch()
    tx, sgd, clean = case.make(), optax.sgd(0.1), gradient(params, batch)
    updates, _ = tx.update(clean, tx.init(params), params, **case.extra(batch))
    by_hand, _ = sgd.update(updates, sgd.init(params), params)
    chained, more = optax.chain(tx, sgd), {"nobody_knows_this": object(), "value": 3.0}
    got, _ = chained.update(clean, chained.init(params), params, **case.extra(batch), **more)
    chex.assert_trees_all_equal(got, by_hand)


@pytest.mark.parametrize("wide", [False, True])
def test_structure_types_and_weakness_of_the_state_are_stable(case, wide):
    dtype = jnp.float64 if wide else jnp.float32
    with jax.enable_x64(wide):
        tx = case.make()
        state = tx.init(make_params(dtype))
        for step in range(2):
            params, batch = make_params(dtype), make_batch(dtype=dtype, seed=step)
            updates, new = tx.update(gradient(params, batch), state, params, **case.extra(batch))
            chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
            assert jax.tree.structure(new) == jax.tree.structure(state)
            for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
                assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
            state = new


def test_the_second_update_compiles_nothing_and_equals_eager(case):
    tx = optax.chain(case.make(), optax.sgd(0.1))
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        traces.append(None)
        updates, state = tx.update(gradient(params, batch), state, params, **case.extra(batch))
        return optax.apply_updates(params, updates), state

    params = make_params()
    state = tx.init(params)
    for seed in range(3):
        params, state = step(params, state, make_batch(seed=seed))
    assert len(traces) == 1
    chex.assert_trees_all_close(params, plain(case), rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_bfloat16(case):
    params, _ = run(optax.chain(case.make(), optax.sgd(0.1)), case, make_params(jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    chex.assert_trees_all_close(jax.tree.map(lambda x: x.astype(jnp.float32), params), plain(case), atol=0.1)


def test_a_zero_gradient_stays_finite(case):
    params, batch = make_params(), make_batch()
    tx = case.make()
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params, **case.extra(batch))
    chex.assert_tree_all_finite(updates)


def test_inject_hyperparams(case):
    inject = optax.inject_hyperparams(case.factory, static_args=case.static)
    params, _ = run(optax.chain(inject(**dict(case.arguments)), optax.sgd(0.1)), case)
    chex.assert_trees_all_close(params, plain(case), rtol=1e-6)


def test_a_full_mask_changes_nothing_and_a_partial_one_freezes(case):
    full = functools.partial(optax.masked, mask={"w": True, "b": True})
    chex.assert_trees_all_close(run(place(case, full), case)[0], plain(case), rtol=1e-6)
    partial = functools.partial(optax.masked, mask={"w": True, "b": False})
    zero_rest = optax.masked(optax.set_to_zero(), {"w": False, "b": True})
    params, _ = run(optax.chain(place(case, partial), zero_rest), case)
    np.testing.assert_array_equal(params["b"], make_params()["b"])
    assert not np.allclose(params["w"], make_params()["w"])


def test_partition(case):
    def wrap(inner):
        return optax.partition({"train": inner, "freeze": optax.set_to_zero()}, {"w": "train", "b": "freeze"})

    params, _ = run(place(case, wrap), case)
    np.testing.assert_array_equal(params["b"], make_params()["b"])
    assert not np.allclose(params["w"], make_params()["w"])


def test_apply_if_finite(case):
    tx = optax.apply_if_finite(optax.chain(case.make(), optax.sgd(0.1)), max_consecutive_errors=3)
    chex.assert_trees_all_close(run(tx, case)[0], plain(case), rtol=1e-4, atol=1e-5)
    params, batch = make_params(), make_batch()
    state = tx.init(params)
    nan = jax.tree.map(lambda g: g * jnp.nan, gradient(params, batch))
    updates, _ = tx.update(nan, state, params, **case.extra(batch))
    assert all(not np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(updates))


def test_schedule_free(case):
    inner = optax.chain(case.make(), optax.sgd(0.1))
    params, state = run(optax.contrib.schedule_free(inner, learning_rate=0.1), case)
    chex.assert_tree_all_finite(optax.contrib.schedule_free_eval_params(state, params))
    assert not np.allclose(params["w"], make_params()["w"])
