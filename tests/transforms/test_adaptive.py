"""The rule inside an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessabs
from hessabs.batch_size import Count, GradientStatistics, Observation, gradient_statistics
from tests.transforms.cases import gradient, loss_fn, make_batch, make_params

pytestmark = pytest.mark.sampled


def follow(controller, eigenvalues):
    """The controller called by hand after updates of its own batch size."""
    state, samples, seen = controller.init(), 0, []
    for eigenvalue in eigenvalues:
        scale = float(state.lr_scale)
        samples += int(state.batch_size)
        if samples >= int(state.observe_at):
            state = controller.update(Observation(samples, eigenvalue), state)
        seen.append((scale, int(state.batch_size)))
    return seen


def test_it_is_the_controller_called_by_hand():
    rule = hessabs.batch_size.hessian_adaptive(4, 32, measure_every=8, patience=3)
    rule = hessabs.batch_size.with_decay(rule, (100,), 0.5)
    eigenvalues = [9.0, 8.0, 7.0, 4.0, 4.0, 2.0, 1.9, 1.9, 1.9, 1.9, 1.0]
    tx = hessabs.adaptive_batch_size(rule)
    state, seen = tx.init(jnp.ones(())), []
    for eigenvalue in eigenvalues:
        updates, state = tx.update(jnp.ones(()), state, eigenvalue=eigenvalue)
        seen.append((float(updates), int(hessabs.read(state).batch_size)))
    assert seen == follow(rule, eigenvalues)
    assert seen[-1][1] == 32


def test_growth_holds_from_the_next_update_on():
    tx = hessabs.adaptive_batch_size(hessabs.batch_size.timer(4, 16, every=8))
    state, scales = tx.init(jnp.ones(())), []
    for _ in range(4):
        updates, state = tx.update(jnp.ones(()), state)
        scales.append(float(updates))
    # 4, 8: grown to 8 examples; 16: grown to 16.
    assert scales == [1.0, 1.0, 2.0, 4.0]
    assert int(hessabs.read(state).samples) == 4 + 4 + 8 + 16


def test_a_measurement_that_is_not_given_is_asked_for_again():
    rule = hessabs.batch_size.hessian_adaptive(4, 16, measure_every=4, patience=2)
    tx = hessabs.adaptive_batch_size(rule)
    state = tx.init(jnp.ones(()))
    for count in range(5):
        assert bool(hessabs.measurement_due(state))
        assert int(state.missed) == count
        _, state = tx.update(jnp.ones(()), state, eigenvalue=None)
        assert int(state.controller.batch_size) == 4
    # All of the five count for the patience; it ends with the first measurement that there is.
    assert int(state.controller.rule.since_growth) == 5
    _, state = tx.update(jnp.ones(()), state, eigenvalue=8.0)
    assert (int(state.controller.batch_size), int(state.missed)) == (8, 5)


def test_an_observation_brings_its_own_count():
    rule = hessabs.batch_size.hessian_adaptive(4, 16, measure_every=1000)
    tx = hessabs.adaptive_batch_size(rule)
    state = tx.init(jnp.ones(()))
    for samples, eigenvalue in ((1000, 8.0), (2000, 4.0)):
        _, state = tx.update(jnp.ones(()), state, observation=Observation(samples, eigenvalue))
    assert (int(state.samples), int(state.controller.batch_size)) == (2000, 8)


def test_gradient_statistics_reach_the_rule():
    tx = hessabs.adaptive_batch_size(hessabs.batch_size.norm_test(4, 64, measure_every=4))
    noisy = GradientStatistics(2, 2, 9.0, 1.0)  # 2 * 2 * 8 / 1
    _, state = tx.update(jnp.ones(()), tx.init(jnp.ones(())), gradient_statistics=noisy)
    assert int(hessabs.read(state).batch_size) == 32


def test_accumulation_follows_the_rule_and_feeds_it():
    # What norm_test decides from a stream of micro-batches is what it decides from the stacked gradients.
    rule = hessabs.batch_size.norm_test(4, 64, measure_every=4, tolerance=0.5)
    tx = hessabs.accumulate(
        optax.chain(optax.trace(0.9), hessabs.adaptive_batch_size(rule)), micro_batch_size=2, statistics=True
    )
    params = make_params()
    gradients = [gradient(params, make_batch(2, seed=seed)) for seed in range(2)]
    state = tx.init(params)
    update = jax.jit(tx.update)
    for g in gradients:
        assert not bool(state.updated)
        _, state = update(g, state, params)
    assert bool(state.updated)
    stacked = gradient_statistics(jax.tree.map(lambda *x: jnp.stack(x), *gradients), 2)
    want = rule.update(Observation(4, gradient=stacked), rule.init())
    assert int(hessabs.read(state).batch_size) == int(want.batch_size) > 4
    for _ in range(int(want.batch_size) // 2):
        assert int(state.inner_state[1].samples) == 4
        _, state = update(gradients[0], state, params)
    assert bool(state.updated)
    assert int(state.inner_state[1].samples) == 4 + int(want.batch_size)


def test_it_measures_by_itself_what_power_iteration_measures():
    rule = hessabs.batch_size.hessian_adaptive(16, 64, measure_every=32)
    tx = hessabs.self_measuring_batch_size(rule, key=jax.random.key(3), max_iters=200, rtol=1e-4)
    params, batch = make_params(), make_batch()
    update = jax.jit(lambda state: tx.update(params, state, params, loss_fn=loss_fn, batch=batch))
    _, state = update(tx.init(params))
    assert np.isnan(hessabs.read(state).eigenvalue)  # not yet due
    _, state = update(state)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = jax.jit(jax.hessian(lambda x: loss_fn(unravel(x), batch)))(flat)
    want = max(np.linalg.eigvalsh(dense), key=abs)
    np.testing.assert_allclose(hessabs.read(state).eigenvalue, want, rtol=1e-3)
    before = state.eigenvector
    _, state = update(state)
    np.testing.assert_array_equal(state.eigenvector["w"], before["w"])  # nothing was measured in between


def test_a_loss_that_is_not_finite_spoils_no_later_measurement():
    rule = hessabs.batch_size.stability_limited(16, 64, lr=0.01, measure_every=16)
    tx = hessabs.self_measuring_batch_size(rule, key=jax.random.key(3))
    params = make_params()
    bad = jax.tree.map(lambda x: x * jnp.nan, make_batch())
    _, state = tx.update(params, tx.init(params), params, loss_fn=loss_fn, batch=bad)
    assert int(hessabs.read(state).batch_size) == 16
    assert np.isfinite(state.eigenvector["w"]).all()
    _, state = tx.update(params, state, params, loss_fn=loss_fn, batch=make_batch())
    assert int(hessabs.read(state).batch_size) == 64


def test_refusals():
    rule = hessabs.batch_size.norm_test(4, 64, measure_every=4)
    with pytest.raises(ValueError, match="a rule that measures 'gradient'; use adaptive_batch_size"):
        hessabs.self_measuring_batch_size(rule, key=jax.random.key(0))
    rule = hessabs.batch_size.constant(4)
    with pytest.raises(ValueError, match="`max_iters` must be a whole number of at least 1, got 0"):
        hessabs.self_measuring_batch_size(rule, key=jax.random.key(0), max_iters=0)
    tx = hessabs.self_measuring_batch_size(rule, key=jax.random.key(0))
    with pytest.raises(ValueError, match="needs params, loss_fn: call update"):
        tx.update(make_params(), tx.init(make_params()))


@pytest.mark.parametrize("not_measured", [None, jnp.nan])
def test_not_measured_may_be_said_under_jit_and_a_late_measurement_is_heard(not_measured):
    # Due at every second update; told one update late, as a loop does that looks after the update.
    rule = hessabs.batch_size.hessian_adaptive(4, 64, measure_every=8, patience=None)
    tx = hessabs.adaptive_batch_size(rule)
    update = jax.jit(lambda state, value: tx.update(jnp.ones(()), state, eigenvalue=value)[1])
    state = tx.init(jnp.ones(()))
    for missing, value in ((2, 8.0), (1, 4.0)):
        for _ in range(missing):
            state = update(state, not_measured)
        assert bool(hessabs.measurement_due(state))
        state = update(state, value)
        assert float(hessabs.read(state).eigenvalue) == value
    assert (int(state.controller.batch_size), int(state.missed)) == (8, 2)


def test_measurements_may_be_made_where_they_are_due_in_one_jitted_loop():
    rule = hessabs.batch_size.hessian_adaptive(4, 64, measure_every=32, patience=3)
    tx = hessabs.adaptive_batch_size(rule)

    @jax.jit
    def run(state):
        def step(state, _):
            due = hessabs.measurement_due(state)
            value = jax.lax.cond(due, lambda: jnp.float32(5.0), lambda: jnp.float32(jnp.nan))
            return tx.update(jnp.ones(()), state, eigenvalue=value)[1], due

        return jax.lax.scan(step, state, length=24)

    state, due = run(tx.init(jnp.ones(())))
    # 4 examples an update, due at 32, 64 and 96; three measurements without growth make 8 an update.
    assert [update for update, d in enumerate(due) if d] == [7, 15, 23]
    assert (int(state.controller.batch_size), int(state.missed)) == (8, 0)


def test_a_rule_that_is_never_told_what_it_measures_is_refused():
    eigenvalue = hessabs.batch_size.hessian_adaptive(4, 64, measure_every=8)
    noise = hessabs.batch_size.gradient_noise_scale(4, 64, measure_every=8)
    for rule, message in (
        (eigenvalue, "adaptive_batch_size needs `eigenvalue`"),
        (noise, "adaptive_batch_size needs `gradient_statistics`.*statistics=True"),
    ):
        tx = hessabs.adaptive_batch_size(rule)
        state = tx.init(jnp.ones(()))
        with pytest.raises(ValueError, match=message):
            jax.jit(tx.update)(jnp.ones(()), state)
        with pytest.raises(ValueError, match=r"has no `eigenvalue`|needs `gradient_statistics`"):
            tx.update(jnp.ones(()), state, observation=Observation(4))
    tx = hessabs.accumulate(hessabs.adaptive_batch_size(noise), micro_batch_size=4, statistics=True)
    with pytest.raises(ValueError, match="must be at most half of its first batch of 4 examples, got 4"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())))


def test_updates_whose_noise_cannot_be_measured_are_counted():
    tx = hessabs.adaptive_batch_size(hessabs.batch_size.gradient_noise_scale(4, 64, measure_every=4))
    state = tx.init(jnp.ones(()))
    for parts in (1, 1, 2):
        statistics = GradientStatistics(2, jnp.int32(parts), 9.0, 1.0)
        _, state = tx.update(jnp.ones(()), state, gradient_statistics=statistics)
    assert int(state.missed) == 2


def test_the_examples_that_were_seen_are_counted():
    # 100 were asked for; micro-batches of 64 make 128 of them. The timer comes after 1,280 and not after 1,000.
    rule = hessabs.batch_size.timer(100, 400, every=1280)
    tx = hessabs.accumulate(hessabs.adaptive_batch_size(rule), micro_batch_size=64)
    update = jax.jit(tx.update)
    state = tx.init(jnp.ones(()))
    for _ in range(20):
        assert int(hessabs.read(state).batch_size) == 100
        _, state = update(jnp.ones(()), state)
    assert (int(hessabs.read(state).samples), int(hessabs.read(state).batch_size)) == (1280, 200)


@pytest.mark.parametrize("start", [2**31 - 8_000_000, 10**13])
def test_it_counts_tokens_beyond_int32(start):
    batch = 4_000_000
    rule = hessabs.batch_size.timer(batch, 2 * batch, every=start + 2 * batch)
    tx = optax.chain(hessabs.adaptive_batch_size(rule), hessabs.by_samples(lambda step: step, batch))
    counted, scheduled = tx.init(jnp.ones(()))
    first = (counted._replace(samples=Count.of(start)), scheduled._replace(samples=Count.of(start)))

    @jax.jit
    def run(state):
        def step(state, _):
            size = hessabs.read(state).batch_size
            updates, state = tx.update(jnp.ones(()), state, batch_size=size)
            return state, (size, -updates)

        return jax.lax.scan(step, state, length=4)

    state, (sizes, rates) = run(first)
    assert sizes.tolist() == [batch, batch, 2 * batch, 2 * batch]
    steps = [start / batch + done for done in (0, 1, 2, 4)]
    np.testing.assert_allclose(rates, np.float32(steps) * [1, 1, 2, 2], rtol=1e-7)
    assert int(state[0].samples) == int(state[1].samples) == start + 6 * batch
