"""Growth at given times."""

import jax
import numpy as np
import pytest

from hessabs.batch_size import (
    NEVER,
    Observation,
    batch_growth,
    fixed_growth,
    hessian_adaptive,
    timer,
    with_adversarial,
    with_coupling,
)

POINTS = (1000, 2000, 3000)


def course(controller):
    """(samples, batch size, learning-rate scale) at each event until none is left."""
    state, seen = controller.init(), []
    while int(state.observe_at) != NEVER:
        samples = int(state.observe_at)
        state = controller.update(Observation(samples), state)
        seen.append((samples, int(state.batch_size), round(float(state.lr_scale), 6)))
    return seen


def test_the_rate_takes_what_the_maximum_leaves():
    # 128, 640, 3200, then 5120 instead of 16000: the rate takes the remaining 0.32.
    got = course(batch_growth(128, 5120, lr_decay_at=POINTS, lr_decay=0.2))
    assert got == [(1000, 640, 1.0), (2000, 3200, 1.0), (3000, 5120, 0.32)]


def test_batch_over_rate_grows_as_the_decayed_rate_would_fall():
    seen = course(batch_growth(128, 640, lr_decay_at=POINTS, lr_decay=0.2))
    assert [batch_size for _, batch_size, _ in seen] == [640] * 3
    np.testing.assert_allclose([scale * 128 / batch for _, batch, scale in seen], [0.2, 0.04, 0.008], rtol=1e-6)


def test_held_rates_stay():
    got = course(batch_growth(128, 640, lr_decay_at=POINTS, lr_decay=0.2, leftover="hold"))
    assert [scale for *_, scale in got] == [1.0, 1.0, 1.0]


def test_growth_rounds_down_to_whole_initial_batches():
    got = course(batch_growth(128, 16384, lr_decay_at=POINTS, lr_decay=0.2))
    assert [batch_size for _, batch_size, _ in got] == [640, 3200, 16000]
    got = course(batch_growth(10, 1000, lr_decay_at=POINTS, lr_decay=0.4))
    assert [batch_size for _, batch_size, _ in got] == [20, 50, 120]


@pytest.mark.parametrize(("coupling", "scale"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_coupling(coupling, scale):
    rule = with_coupling(fixed_growth(1, 4, grow_at=(10,), growth_factor=4.0), coupling)
    assert course(rule) == [(10, 4, scale)]


def test_the_timer_is_abs_whose_eigenvalue_never_falls():
    measured, timed = (
        with_adversarial(rule, 0.2, decrease=3.0, until=9500)
        for rule in (
            hessian_adaptive(2, 24, measure_every=100, patience=10, growth_factor=1.5),
            timer(2, 24, every=1000, growth_factor=1.5),
        )
    )
    a, b = measured.init(), timed.init()
    measure, grow = jax.jit(measured.update), jax.jit(timed.update)
    for samples in range(100, 12_000, 100):
        a = measure(Observation(samples, 1.0), a)
        b = grow(Observation(samples), b)
        np.testing.assert_allclose(a[:3], b[:3], rtol=1e-6)
    assert int(b.batch_size) == 24


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (batch_growth, {"lr_decay": 1.0}, "`growth_factor` must be above 1, got 1.0"),
        (batch_growth, {"growth_factor": 0.5}, "`growth_factor` must be above 1, got 0.5"),
        (batch_growth, {"leftover": "lose"}, "`leftover` must be one of .* got 'lose'"),
        (batch_growth, {"lr_decay_at": (2, 1)}, "`lr_decay_at` must be positive"),
        (fixed_growth, {"grow_at": (0,)}, "`grow_at` must be positive"),
        (fixed_growth, {"growth_factor": 1.0}, "`growth_factor` must be above 1"),
        (timer, {"every": 0}, "`every` must be at least 1 example, got 0"),
        (timer, {"maximum": 2**31}, "`maximum` must be below"),
        (timer, {"initial": 0}, "`initial` must lie in"),
    ],
)
def test_bad_parameters(make, options, message):
    needed = {batch_growth: {"lr_decay_at": (5,)}, fixed_growth: {"grow_at": (5,)}, timer: {"every": 5}}[make]
    with pytest.raises(ValueError, match=message):
        make(**{"initial": 2, "maximum": 8, **needed, **options})


def test_an_unknown_coupling_is_refused():
    with pytest.raises(ValueError, match=r"`lr_coupling` must be one of .* got 'cubic'"):
        with_coupling(timer(1, 4, every=10), "cubic")


@pytest.mark.parametrize("decrease", [1.0, 2.0])
@pytest.mark.parametrize("make", ["fixed", "eigenvalue", "gg"])
def test_a_fraction_that_does_not_decrease_is_kept_at_the_maximum(make, decrease):
    plain = {
        "fixed": lambda: fixed_growth(1, 2, grow_at=(10,)),
        "eigenvalue": lambda: hessian_adaptive(1, 2, measure_every=10, patience=1),
        "gg": lambda: batch_growth(1, 2, lr_decay_at=(10,), lr_decay=0.5),
    }[make]()
    rule = with_adversarial(plain, 0.2, decrease=decrease)
    state = rule.update(Observation(10, 3.0), rule.init())
    assert int(state.batch_size) == 2
    assert float(state.adversarial_fraction) == pytest.approx(0.2 if decrease == 1 else 0.0)
