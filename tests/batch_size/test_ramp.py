"""The ramp, held against the two rules that it is the larger of."""

import jax
import numpy as np
import pytest

from hessabs.batch_size import (
    NEVER,
    GradientStatistics,
    Observation,
    gradient_noise_scale,
    growth_bounds,
    plan,
    ramp,
    seesaw,
    with_coupling,
)

TOTAL, EVERY = 20_000, 500
SIZES = {"initial": 32, "maximum": 1024, "growth_factor": 2.0}
NOISY = {**SIZES, "measure_every": EVERY, "average_over": 4}


def falls(samples):
    return 1 - samples / TOTAL


FALLS = {"lr_schedule": falls, "total": TOTAL}


def told(samples, scale):
    """An observation whose gradients say this noise scale: two parts of 16, the signal 1."""
    return Observation(samples, gradient=GradientStatistics(16, 2, 1 + scale / 16, 1 + scale / 32))


def course(controller, scales):
    """The states after observations every `EVERY` examples."""
    state, states, update = controller.init(), [], jax.jit(controller.update)
    for count, scale in enumerate(scales, start=1):
        state = update(told(count * EVERY, scale), state)
        states.append(state)
    return states


def sizes(states):
    return [int(state.batch_size) for state in states]


SCALES = np.concatenate([np.linspace(20, 150, 20), np.linspace(150, 160, 20)])


def test_what_is_told_is_the_noise_scale():
    rule = gradient_noise_scale(32, 32 * 64, measure_every=1, average_over=1, growth_factor=64.0)
    for scale in (64.0, 320.0):
        assert int(rule.update(told(1, scale), rule.init()).batch_size) == scale


def test_it_is_the_larger_of_some_noise_scales_and_seesaw():
    both = sizes(course(ramp(**NOISY, **FALLS, scale=1.5), SCALES))
    noise = sizes(course(gradient_noise_scale(**NOISY, scale=1.5), SCALES))
    decay = sizes(course(seesaw(**SIZES, **FALLS), SCALES))
    assert both == list(np.maximum(noise, decay))
    assert 0 < np.count_nonzero(np.greater(noise, decay)) < 35
    assert 0 < np.count_nonzero(np.less(noise, decay)) < 35


def test_without_a_schedule_it_is_the_noise_scale_alone():
    states, want = course(ramp(**NOISY), SCALES), course(gradient_noise_scale(**NOISY, scale=2.0), SCALES)
    assert sizes(states) == sizes(want)
    assert [int(state.observe_at) for state in states] == [int(state.observe_at) for state in want]
    never = ramp(**NOISY, lr_schedule=lambda samples: 1.0, total=TOTAL)
    assert sizes(course(never, SCALES)) == sizes(states)


def test_the_noise_of_a_warm_up_is_not_heard():
    warming = ramp(**NOISY, lr_schedule=lambda samples: min(samples / 10_000, 1.0), total=TOTAL)
    loud = np.concatenate([np.full(15, 900.0), np.full(25, 20.0)])  # it falls before the warm-up ends
    assert sizes(course(warming, loud))[:19] == [32] * 19
    assert sizes(course(ramp(**NOISY), loud))[:8] == [32, 32, 32, 64, 128, 256, 512, 1024]
    assert sizes(course(warming, SCALES))[-1] > 32


def test_without_noise_it_is_seesaw_and_measures_until_the_maximum():
    rule = with_coupling(ramp(**NOISY, **FALLS), "sqrt")
    states = course(rule, np.zeros(40))
    wanted = course(with_coupling(seesaw(**SIZES, **FALLS), "sqrt"), np.zeros(40))
    assert sizes(states) == sizes(wanted)
    assert [float(state.lr_scale) for state in states] == [float(state.lr_scale) for state in wanted]
    assert sizes(states)[-1] == 1024
    assert [int(state.observe_at) == NEVER for state in states] == [size == 1024 for size in sizes(states)]


def test_a_plan_lies_between_the_decay_alone_and_noise_alone():
    run = {"num_examples": TOTAL, "epochs": 1, "micro_batch_size": 16, "whole_updates": True}
    bounds = growth_bounds(ramp(**NOISY, **FALLS), **run)
    assert bounds.most.updates == plan(seesaw(**SIZES, **FALLS), **run).updates
    assert bounds.fewest.updates < bounds.most.updates / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_schedule": falls}, "`lr_schedule` and `total` go together"),
        ({"total": 5}, "`lr_schedule` and `total` go together"),
        ({"lr_schedule": lambda samples: float("nan"), "total": 5}, "finite factors of at least 0"),
        ({"scale": 0.0}, "`scale` must be positive and finite"),
        ({"growth_factor": 1.0}, "`growth_factor` must be above 1"),
        ({"measure_every": 0}, "`measure_every` must be at least 1"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        ramp(**{**NOISY, **options})
