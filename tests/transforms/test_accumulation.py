"""Accumulation is exact whatever the number of micro-batches does, and where optax.MultiSteps is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hessabs
from tests.transforms.cases import gradient, loss_fn, make_batch, make_params

pytestmark = pytest.mark.sampled


def run(tx, gradients, numbers):
    state, out, update = tx.init(jnp.zeros(())), [], jax.jit(tx.update)
    for g, k in zip(gradients, numbers, strict=True):
        updates, state = update(np.float32(g), state, np.float32(0), num_micro_batches=k)
        out.append(float(updates))
    return out, state


SUMMED = hessabs.accumulate(optax.identity())  # compiled once


@settings(max_examples=25, deadline=None)
@given(calls=st.lists(st.tuples(st.integers(-8, 8), st.integers(1, 5)), min_size=1, max_size=20))
def test_no_gradient_is_lost_however_the_number_changes(calls):
    gradients, numbers = zip(*calls, strict=True)
    out, state = run(SUMMED, gradients, numbers)
    pending, want = [], []
    for g, k in calls:
        pending.append(g)
        want.append(np.mean(pending) if len(pending) >= k else 0.0)
        pending = [] if len(pending) >= k else pending
    np.testing.assert_allclose(out, want, rtol=1e-6)
    assert (int(state.num_accumulated), float(state.total)) == (len(pending), sum(pending))


def test_weights_are_exact_for_micro_batches_of_unequal_size():
    gradients = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)  # of each example
    tx = hessabs.accumulate(optax.identity(), num_micro_batches=3)
    state, update = tx.init(jnp.zeros(3)), jax.jit(tx.update)
    for part in (gradients[:8], gradients[8:14], gradients[14:]):
        updates, state = update(part.mean(axis=0), state, weight=len(part))
    np.testing.assert_allclose(updates, gradients.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_the_mean_of_bfloat16_gradients_is_taken_in_float32():
    # 1 + 1/256 is no bfloat16: a sum of 256 ones and a small one in bfloat16 would lose it.
    tx = hessabs.accumulate(optax.identity(), num_micro_batches=512)
    state, one = tx.init(jnp.zeros((), jnp.bfloat16)), jnp.ones((), jnp.bfloat16)
    assert state.total.dtype == jnp.float32
    update = jax.jit(tx.update)
    for _ in range(512):
        updates, state = update(one, state)
    assert (float(updates), updates.dtype) == (1.0, jnp.bfloat16)


def test_the_mean_of_float64_gradients_is_taken_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        gradients, weights = rng.normal(size=(3, 5)), np.array([0.1, 0.2, 0.3])
        tx = hessabs.accumulate(optax.sgd(1.0), num_micro_batches=3)
        state = tx.init(jnp.zeros(5))
        for gradient, weight in zip(gradients, weights, strict=True):
            updates, state = tx.update(jnp.asarray(gradient), state, weight=weight)
        np.testing.assert_allclose(updates, -weights @ gradients / weights.sum(), rtol=1e-14)


def test_weights_of_zero_give_a_zero_update():
    tx = hessabs.accumulate(optax.identity(), num_micro_batches=1)
    updates, _ = tx.update(jnp.ones(()), tx.init(jnp.ones(())), weight=0.0)
    assert float(updates) == 0.0


def test_one_compilation_for_all_numbers():
    tx = hessabs.accumulate(optax.adam(0.1))
    traces = []

    @jax.jit
    def update(g, state, k):
        traces.append(None)
        return tx.update(g, state, num_micro_batches=k)

    state = tx.init(jnp.ones(3))
    for k in (1, 2, 5, 3, 1):
        _, state = update(jnp.ones(3), state, jnp.int32(k))
    assert len(traces) == 1


def counting(calls):
    """A transformation that counts its updates and keeps the extra arguments it saw."""

    def update(updates, state, params=None, **extra_args):
        jax.debug.callback(functools.partial(calls.append, sorted(extra_args)))
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def test_the_inner_update_runs_at_the_boundary_alone_where_multi_steps_always_runs_it():
    ours, theirs = [], []
    tx = hessabs.accumulate(counting(ours), num_micro_batches=3)
    multi = optax.MultiSteps(counting(theirs), every_k_schedule=3)
    state, multi_state = tx.init(jnp.zeros(())), multi.init(jnp.zeros(()))
    update, multi_update = jax.jit(tx.update), jax.jit(multi.update)
    for _ in range(6):
        _, state = update(jnp.ones(()), state)
        _, multi_state = multi_update(jnp.ones(()), multi_state)
    jax.effects_barrier()
    assert (len(ours), len(theirs)) == (2, 6)


def test_extra_arguments_reach_the_inner_update_where_multi_steps_drops_them():
    seen = []
    tx = hessabs.accumulate(counting(seen), num_micro_batches=1)
    tx.update(jnp.ones(()), tx.init(jnp.ones(())), jnp.ones(()), value=1.0, batch="anything")
    jax.effects_barrier()
    assert seen == [["batch", "value"]]
    theirs = []
    multi = optax.chain(optax.MultiSteps(counting(theirs), every_k_schedule=1).gradient_transformation())
    multi.update(jnp.ones(()), multi.init(jnp.ones(())), jnp.ones(()), value=1.0, batch="anything")
    jax.effects_barrier()
    assert theirs == [[]]


def test_a_number_that_shrinks_half_way_loses_nothing_where_multi_steps_loses_the_gradient():
    gradients, numbers = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [4, 4, 4, 2, 2, 2]
    ours, _ = run(SUMMED, gradients, numbers)
    assert ours == [0.0, 0.0, 0.0, 2.5, 0.0, 5.5]
    current = [4]
    multi = optax.MultiSteps(optax.identity(), every_k_schedule=lambda step: current[0])
    state, theirs = multi.init(jnp.zeros(())), []
    for g, k in zip(gradients, numbers, strict=True):
        current[0] = k
        updates, state = multi.update(jnp.float32(g), state)
        theirs.append(float(updates))
    # The update that was due never comes, and its sum leaves no trace in the next ones.
    assert theirs[3] == 0.0
    assert sum(theirs) * 2 < sum(gradients)


def test_unequal_micro_batches_have_equal_weights_in_multi_steps():
    multi = optax.MultiSteps(optax.identity(), every_k_schedule=2)
    state = multi.init(jnp.zeros(()))
    for g in (1.0, 4.0):
        updates, state = multi.update(jnp.float32(g), state)
    tx = hessabs.accumulate(optax.identity(), num_micro_batches=2)
    ours = tx.init(jnp.zeros(()))
    for g, weight in ((1.0, 2.0), (4.0, 1.0)):
        exact, ours = tx.update(jnp.float32(g), ours, weight=weight)
    assert (float(updates), float(exact)) == (2.5, 2.0)


def test_adversarial_examples_before_accumulation_are_of_every_micro_batch():
    params, batches = make_params(), [make_batch(8, seed=seed) for seed in range(2)]
    attack = hessabs.attacks.fgsm(0.1)
    tx = optax.chain(
        hessabs.adversarial_gradient(attack, max_fraction=0.5),
        hessabs.accumulate(optax.identity(), num_micro_batches=2),
    )
    state, want = tx.init(params), []

    @jax.jit
    def both(state, batch):
        updates, state = tx.update(gradient(params, batch), state, params, loss_fn=loss_fn, batch=batch)
        mixed = hessabs.attacks.replace_fraction(attack, loss_fn, params, batch, 0.5)
        return updates, state, gradient(params, mixed)

    for batch in batches:
        updates, state, expected = both(state, batch)
        want.append(expected)
    np.testing.assert_allclose(updates["w"], (want[0]["w"] + want[1]["w"]) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_micro_batches": 0}, "`num_micro_batches` must be at least 1, got 0"),
        ({"micro_batch_size": -2}, "`micro_batch_size` must be at least 1, got -2"),
        ({"num_micro_batches": 2, "micro_batch_size": 2}, "both say how many"),
        ({"statistics": True}, "`statistics` needs `micro_batch_size`"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        hessabs.accumulate(optax.identity(), **options)


def test_how_many_must_be_said():
    tx = hessabs.accumulate(optax.identity())
    with pytest.raises(ValueError, match="needs to know how many micro-batches"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())))
