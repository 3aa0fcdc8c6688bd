"""Runs of language models: 4M-token batches, 1e13 tokens, far beyond what an int32 counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.batch_size import (
    Count,
    Observation,
    adascale,
    cyclical,
    growth_bounds,
    hessian_adaptive,
    linear_ramp,
    linear_scaling,
    plan,
    schedule,
    timer,
    with_decay,
)
from hessabs.batch_size.methods import make_plans
from hessabs.batch_size.settings import Gg, PlanSettings

pytestmark = pytest.mark.sampled

BATCH = 4_000_000  # tokens
START = 10**13
DECAYS = (2**31 - 1, 2**31 + BATCH, START + 3 * BATCH)


def follow(controller, start, updates):
    """The rule in one jitted scan over updates of BATCH tokens, begun at a count of tokens."""

    def step(carry, _):
        samples, state = carry
        samples = samples + BATCH
        told = Observation(samples, jnp.float32(1.0))
        due = samples >= state.observe_at
        state = jax.tree.map(lambda n, o: jnp.where(due, n, o), controller.update(told, state), state)
        return (samples, state), (samples, state)

    @jax.jit
    def run(samples):
        first = controller.update(Observation(samples, jnp.float32(1.0)), controller.init())
        return jax.lax.scan(step, (samples, first), length=updates)[1]

    samples, states = jax.device_get(run(Count.of(start)))
    return [int(samples.high[i]) * 2**30 + int(samples.low[i]) for i in range(updates)], states


@pytest.mark.parametrize("start", [2**31 - 3 * BATCH, START])
def test_decays_and_measurements_come_at_their_token(start):
    every = 10 * BATCH
    rule = with_decay(hessian_adaptive(BATCH, 2 * BATCH, measure_every=every, patience=2), DECAYS, 0.5)
    samples, states = follow(rule, start, 24)
    assert samples == [start + BATCH * (update + 1) for update in range(24)]
    passed = [sum(count >= at for at in DECAYS) for count in samples]
    measured = [count // every - start // every for count in samples]
    grown = np.asarray([1 + (count >= 1) for count in measured])  # the call at the start was the first of two
    np.testing.assert_array_equal(states.batch_size, BATCH * grown)
    np.testing.assert_allclose(states.lr_scale, 0.5 ** np.asarray(passed) * grown)


@pytest.mark.slow
def test_a_cycle_and_a_ramp_keep_their_phase():
    cycle = 7 * 10**9
    samples, states = follow(cyclical(BATCH, 4 * BATCH, cycle=cycle), START, 3000)
    parts = [(count % cycle) * 3 // cycle for count in samples]
    np.testing.assert_array_equal(states.batch_size, BATCH * 2 ** np.asarray(parts))
    rule = linear_ramp(BATCH, 10 * BATCH, increment=BATCH, over=9 * 10**12)
    state, update = rule.init(), jax.jit(rule.update)
    for growth in range(1, 10):
        for samples, size in ((growth * 10**12 - 1, growth), (growth * 10**12, growth + 1)):
            assert int(update(Observation(Count.of(samples)), state).batch_size) == size * BATCH


def test_the_progress_of_adascale_goes_on():
    from hessabs.batch_size import GradientStatistics

    rule = adascale(BATCH, base_batch_size=BATCH // 4, measure_every=BATCH, average_over=1)
    statistics = GradientStatistics(BATCH // 2, 2, mean_square=1.0, square_mean=1.0)  # no noise: a gain of 1
    state, update = rule.init(), jax.jit(rule.update)
    for count in range(1, 4):
        state = update(Observation(Count.of(count * 2**40), gradient=statistics), state)
    assert int(state.rule.progress) == 3 * 2**40 // 4


def test_events_far_ahead_are_kept():
    state = timer(8, 32, every=10**17).init()
    assert int(state.observe_at) == 10**17
    state = schedule([8, 16], at=[10**18]).init()
    assert int(state.observe_at) == 10**18


@pytest.mark.slow
def test_a_run_of_chinchilla_size_is_planned():
    tokens = 10**13
    run = {"num_examples": tokens, "epochs": 1, "remainder": "keep"}
    growth = tuple(tokens * part // 10 for part in (1, 2, 3))
    sizes = [BATCH // 2, BATCH, BATCH + 1_000_000, 2 * BATCH]
    planned = plan(schedule(sizes, growth), **run)
    stretches = zip((1, 1, 1, 7), sizes, strict=True)
    assert planned.updates == sum(tokens // 10 * part // size for part, size in stretches)
    whole = plan(schedule(sizes, growth), whole_updates=True, micro_batch_size=500_000, **run)
    assert abs(whole.updates - planned.updates) <= len(sizes)

    ramp = with_decay(linear_ramp(BATCH // 8, BATCH, increment=BATCH // 8, over=10**12), (9 * 10**12,))
    assert plan(ramp, **run).updates == int(
        sum(10**12 / 7 / (BATCH / 8 * step) for step in range(1, 8)) + 9 * 10**12 / BATCH
    )
    warm = linear_scaling(BATCH, base_batch_size=BATCH // 8, warmup=10**9)
    assert plan(warm, **run).updates == tokens // BATCH
    measured = hessian_adaptive(BATCH, 2 * BATCH, measure_every=10**11, patience=10)
    bounds = growth_bounds(measured, **run)
    # At the second measurement at the soonest, at the tenth at the latest.
    assert bounds.fewest.updates == (2 * 10**11) // BATCH + (tokens - 2 * 10**11) // (2 * BATCH)
    assert bounds.most.updates == 10**12 // BATCH + (tokens - 10**12) // (2 * BATCH)


def test_the_command_plans_it():
    settings = PlanSettings(epochs=10, batch_size=BATCH, lr_decay_epochs=(5, 8), micro_batch_size=BATCH)
    want = 5 * 10**12 // BATCH + 3 * 10**12 // (5 * BATCH) + 2 * 10**12 // (25 * BATCH)
    assert make_plans(settings, Gg(max_batch_size=25 * BATCH), 10**12).most.updates == want
