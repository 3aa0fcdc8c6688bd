"""Batch sizes from a table, and the linear ramp."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hessabs
from hessabs.batch_size import (
    Observation,
    fixed_growth,
    hessian_adaptive,
    linear_ramp,
    plan,
    restore,
    schedule,
    with_adversarial,
    with_coupling,
    with_decay,
)
from tests.batch_size import drive
from tests.batch_size.test_growth import course


def sizes_at(controller, points):
    return [int(controller.update(Observation(point), None).batch_size) for point in points]


def megatron(start, increment, ramp, maximum, consumed):
    """``RampupBatchsizeNumMicroBatchesCalculator`` of Megatron-LM, in exact arithmetic."""
    growths = (maximum - start) // increment
    return maximum if consumed > ramp else min(start + consumed * growths // ramp * increment, maximum)


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    start=st.integers(1, 300),
    increment=st.integers(1, 60),
    growths=st.sampled_from([1, 4, 12]),  # a table of each length is compiled
    ramp=st.integers(100, 10**13),
    part=st.fractions(0, 2),
)
def test_the_ramp_is_megatrons(start, increment, growths, ramp, part):
    maximum = start + growths * increment
    rule = linear_ramp(start, maximum, increment=increment, over=ramp)
    near = [at + offset for at in (ramp // growths, ramp) for offset in (-1, 0, 1)]
    points = [0, int(part * ramp), *near]
    assert sizes_at(rule, points) == [megatron(start, increment, ramp, maximum, point) for point in points]


def test_100_to_250_in_steps_that_do_not_divide_it():
    rule = linear_ramp(100, 250, increment=40, over=1000)
    assert course(rule) == [(250, 140, 1.0), (500, 180, 1.0), (750, 220, 1.0), (1000, 250, 1.0)]
    assert (rule.batch_sizes, sizes_at(linear_ramp(64, 64, increment=8, over=10), [100])) == ((100, 250), [64])


@pytest.mark.parametrize(("coupling", "scales"), [("linear", [1.3, 2.5, 0.7]), ("none", [1, 1, 1])])
def test_the_rate_follows_any_sizes(coupling, scales):
    rule = with_coupling(schedule([100, 130, 250, 70], [10, 20, 10**12]), coupling)
    sizes = [130, 250, 70]
    assert course(rule) == list(zip((10, 20, 10**12), sizes, scales, strict=True))
    # By hand: the square root of the ratio, each rounded once.
    rule = with_coupling(schedule([100, 130], [10]), "sqrt")
    assert float(rule.update(Observation(10), None).lr_scale) == np.float32(np.sqrt(1.3))


def test_a_fraction_shrinks_with_growth_alone_and_ends_at_the_largest():
    rule = with_adversarial(schedule([10, 15, 12, 40, 30], [1, 2, 3, 4]), 0.4)
    fractions = [float(rule.update(Observation(at), None).adversarial_fraction) for at in range(5)]
    np.testing.assert_allclose(fractions, [0.4, 0.2, 0.2, 0, 0], rtol=1e-6)


def test_the_rate_cools_down_in_a_straight_line_after_the_ramp():
    cooldown = {"lr_cooldown": (2000, 3000), "lr_final": 0.1}
    rule = with_decay(linear_ramp(100, 250, increment=75, over=1000, **cooldown), (500,), 0.5)
    state, samples, seen = rule.init(), 0, {}
    update = jax.jit(rule.update)
    while samples < 3500:
        samples += int(state.batch_size)
        if samples >= int(state.observe_at):
            state = update(Observation(samples), state)
        seen[samples] = float(state.lr_scale)
    want = [0.5 * np.interp(count, [2000, 3000], [1, 0.1]) if count >= 500 else 1.0 for count in seen]
    np.testing.assert_allclose(list(seen.values()), want, rtol=1e-6)
    assert float(state.lr_scale) == np.float32(0.5) * np.float32(0.1)
    assert int(rule.update(Observation(1500), state).observe_at) == 2000


def test_eager_jitted_and_scanned_give_the_same_bits():
    rule = schedule([30, 77, 50], [200, 400], lr_cooldown=(300, 900), lr_final=0.25)
    rule = with_coupling(rule, "sqrt")
    states = drive.host(rule, [1.0] * 20)
    drive.assert_same_bits(states, drive.host(rule, [1.0] * 20, update=jax.jit(rule.update)))
    drive.assert_same_bits(drive.stack(states), drive.scan(rule)(np.ones(20, np.float32)))


def test_a_maximum_that_is_no_multiple_is_reached():
    rule = fixed_growth(100, 250, grow_at=(10, 20, 30))
    assert course(rule) == [(10, 200, 2.0), (20, 250, 2.5), (30, 250, 2.5)]
    measured = hessian_adaptive(100, 250, measure_every=10, patience=1)
    state = measured.init()
    for samples in (10, 20):
        state = measured.update(Observation(samples, 1.0), state)
    assert (int(state.batch_size), float(state.lr_scale)) == (250, 2.5)
    assert not bool(state.measure)


def test_sizes_that_are_no_multiple_of_the_micro_batch_are_rounded_up_and_counted():
    rule = schedule([100, 130], [256])
    tx = hessabs.accumulate(hessabs.adaptive_batch_size(rule), micro_batch_size=64)
    update, state, updated = jax.jit(tx.update), tx.init(jnp.ones(())), []
    for _ in range(10):
        _, state = update(jnp.ones(()), state)
        updated.append(bool(state.updated))
    assert [call for call, done in enumerate(updated, 1) if done] == [2, 4, 7, 10]
    assert int(hessabs.read(state).samples) == 640
    whole = plan(rule, num_examples=640, epochs=1, micro_batch_size=64, whole_updates=True)
    assert (whole.updates, whole.epochs[0].batch_size) == (4, 130)


def test_a_saved_state_of_any_size_is_taken():
    rule = linear_ramp(100, 250, increment=50, over=300)
    state = rule.update(Observation(100), rule.init())
    assert int(restore(rule, state).batch_size) == 150
    with pytest.raises(ValueError, match="its batch size is 150 and the rule's go from 151 to 200"):
        restore(schedule([151, 200], [5]), state)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (schedule, {"sizes": [1, 2, 3]}, "`sizes` must be .* got .1, 2, 3. for .5,."),
        (schedule, {"sizes": [0, 2]}, "`sizes` must be batch sizes, whole numbers of at least 1"),
        (schedule, {"sizes": [1, 2.5]}, "whole numbers of at least 1, .* got .1, 2.5."),
        (schedule, {"at": [0]}, "`at` must be positive counts"),
        (schedule, {"lr_scales": [1.0]}, "`lr_scales` must be a factor .* got .1.0."),
        (schedule, {"lr_cooldown": (5, 5)}, "`lr_cooldown` must be two ascending .* got .5, 5."),
        (schedule, {"lr_final": 2.0}, "`lr_final` must lie in .* got 2.0"),
        (linear_ramp, {"increment": 0}, "`increment` must be at least 1 example, got 0"),
        (linear_ramp, {"over": 1}, "`over` must have an example for each of the 2 growths, got 1"),
        (linear_ramp, {"maximum": 3}, "`initial` must lie in .1, maximum=3., got 4"),
    ],
)
def test_bad_parameters(make, options, message):
    needed = {
        schedule: {"sizes": [1, 2], "at": [5]},
        linear_ramp: {"initial": 4, "maximum": 8, "increment": 2, "over": 9},
    }[make]
    with pytest.raises(ValueError, match=message):
        make(**{**needed, **options})


def test_a_cool_down_of_the_optimizer_counts_examples_too():
    # The same shape as `lr_cooldown`, from an optax schedule beside the rule.
    rule = linear_ramp(100, 200, increment=100, over=400)
    cooldown = optax.linear_schedule(1.0, 0.0, transition_steps=10, transition_begin=10)
    tx = optax.chain(hessabs.adaptive_batch_size(rule), hessabs.by_samples(cooldown, 100, flip_sign=False))
    state, rates, samples = tx.init(jnp.ones(())), [], []
    for _ in range(11):
        reading = hessabs.read(state)
        samples.append(int(reading.samples))
        updates, state = tx.update(jnp.ones(()), state, batch_size=reading.batch_size)
        rates.append(float(updates))
    np.testing.assert_allclose(rates, np.interp(samples, [1000, 2000], [1, 0]), rtol=1e-6)
