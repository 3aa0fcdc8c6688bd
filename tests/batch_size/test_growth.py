"""Growth at given times."""

import math

import jax
import numpy as np
import pytest

from hessabs.batch_size import (
    NEVER,
    Observation,
    batch_growth,
    fixed_growth,
    hessian_adaptive,
    plan,
    seesaw,
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


SCHEDULES = {
    "linear": lambda samples: 1 - samples / 2**20,
    "cosine": lambda samples: (1 + math.cos(math.pi * samples / 2**20)) / 2,
    "wsd": lambda samples: min(1.0, 2 - samples / 2**19),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_seesaw_takes_the_batch_nearest_to_what_the_schedule_asks_for(name):
    factor, sizes = SCHEDULES[name], [64 * 2**k for k in range(9)]
    controller = seesaw(64, 64 * 2**8, lr_schedule=factor, total=2**20)
    update = jax.jit(controller.update)
    for samples in np.random.default_rng(0).integers(0, 2**20, 40):
        got = int(update(Observation(int(samples)), controller.init()).batch_size)
        wanted = math.log(64 / factor(int(samples)))
        assert got == min(sizes, key=lambda size: abs(math.log(size) - wanted))


@pytest.mark.parametrize(("name", "part"), [("linear", 1 / 2), ("cosine", 1 / 2), ("wsd", 3 / 4)])
def test_seesaw_takes_as_many_updates_as_the_mean_of_the_schedule(name, part):
    # In factors of two they are 3 / (4 sqrt 2) of a linear fall's examples, 6 % more than the mean.
    rule = seesaw(8, 8192, lr_schedule=SCHEDULES[name], total=2**20)
    updates = plan(rule, num_examples=2**20, epochs=1, micro_batch_size=8, whole_updates=True).updates
    assert updates / (2**20 / 8) == pytest.approx(part, rel=0.065)


def test_seesaw_of_a_rate_that_falls_by_several_steps_at_once_grows_by_all_of_them():
    rule = with_coupling(
        seesaw(1, 64, lr_schedule=lambda s: 0.1 ** (s >= 50), total=100, growth_factor=2.0), "sqrt"
    )
    assert course(rule) == [(50, 8, round(math.sqrt(8), 6))]


def test_seesaw_waits_for_the_end_of_a_warm_up_and_ends_with_the_maximum():
    rule = seesaw(1, 4, lr_schedule=lambda s: min((s + 1) / 100, 1.0) * (1 - s / 1000), total=1000)
    (first, *_), (last, *_) = seen = course(rule)
    # The largest factor is 0.901, after 100 examples; growths are at 1 / sqrt 2 and 1 / sqrt 8 of it.
    assert (first, last) == (363, 682)
    assert [batch for _, batch, _ in seen] == [2, 4]


def test_seesaw_refuses_a_schedule_that_does_not_fall():
    for factor in (lambda s: 1.0, lambda s: (s + 1) / 100, lambda s: 1 - 0.2 * s / 100):
        with pytest.raises(
            ValueError, match=r"must fall far enough for a growth, to 0\.707 of its largest value"
        ):
            seesaw(1, 64, lr_schedule=factor, total=100)
    for factor in (lambda s: float("nan"), lambda s: 0.0, lambda s: 1 - s / 10):
        with pytest.raises(ValueError, match="finite factors of at least 0"):
            seesaw(1, 64, lr_schedule=factor, total=100)
    assert course(seesaw(4, 4, lr_schedule=lambda s: 1.0, total=100)) == []


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


@pytest.mark.parametrize("decay", [0.7, 0.8])
def test_a_growth_below_two_goes_through_every_multiple(decay):
    got = course(batch_growth(128, 1024, lr_decay_at=POINTS, lr_decay=decay))
    assert [batch_size for _, batch_size, _ in got] == [256, 384, 512]
    for place, (_, batch_size, scale) in enumerate(got, 1):  # batch over rate grows as the rate would fall
        assert scale == pytest.approx(batch_size / 128 * decay**place)
