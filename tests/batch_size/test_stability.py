"""The batch grows as far as curvature allows, and not beyond."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hessabs.batch_size import NEVER, Observation, stability_limited, with_coupling, with_decay


def after(controller, values):
    state = controller.init()
    for epoch, value in enumerate(values, start=1):
        state = controller.update(Observation(1000 * epoch, value), state)
    return state


def make(**options):
    return stability_limited(
        **{"initial": 128, "maximum": 4096, "lr": 0.1, "measure_every": 1000, "threshold": 2.0, **options}
    )


def test_as_many_factors_as_fit_at_once():
    assert int(after(make(), [4.0]).batch_size) == 512  # 1.6 < 2 <= 3.2
    assert int(after(make(), [0.1]).batch_size) == 4096
    assert int(after(make(), [30.0]).batch_size) == 128


def test_it_never_falls_and_the_end_of_measurement_is_the_maximum():
    assert int(after(make(), [4.0, 100.0]).batch_size) == 512
    done = after(make(), [0.1])
    assert not bool(done.measure)
    assert int(done.observe_at) == NEVER


def test_a_decay_makes_room():
    # At 4.0 * 0.1 * 0.2 * 16 = 1.28 < 2 <= 2.56.
    assert int(after(with_decay(make(), (2000,), 0.2), [4.0, 4.0]).batch_size) == 128 * 16


def test_a_schedule_outside_of_the_rule_makes_room_too():
    controller = with_decay(make(), (1000,), 0.5)
    told = Observation(1000, 4.0, lr_scale=0.4)  # 4.0 * 0.1 * 0.5 * 0.4 * 16 = 1.28 < 2 <= 2.56
    state = controller.update(told, controller.init())
    assert int(state.batch_size) == 128 * 16
    assert float(state.lr_scale) == 8.0  # what is outside stays outside


def test_coupling_says_what_growth_costs():
    assert int(after(with_coupling(make(), "sqrt"), [4.0]).batch_size) == 128 * 16  # 0.4 * 4 = 1.6
    assert int(after(with_coupling(make(), "none"), [19.0]).batch_size) == 4096
    assert int(after(with_coupling(make(), "none"), [21.0]).batch_size) == 128


def test_the_limited_step_is_at_the_threshold_and_recovers():
    controller = make(limit_lr=True)
    shrunk = after(controller, [4.0, 40.0])
    assert int(shrunk.batch_size) == 512
    np.testing.assert_allclose(0.1 * shrunk.lr_scale * 40.0, 2.0, rtol=1e-6)
    assert float(after(controller, [4.0, 40.0, 4.0]).lr_scale) == 4.0
    assert bool(after(controller, [0.1]).measure)


@settings(max_examples=10, deadline=None)
@given(value=st.floats(0.015625, 8192.0, width=32))
def test_a_growth_is_never_into_instability_and_the_next_would_be(value):
    state = after(make(), [value])
    factor = int(state.batch_size) // 128
    if factor > 1:
        assert value * 0.1 * float(state.lr_scale) < 2.0 * (1 + 1e-6)
    if factor < 32:
        assert value * 0.1 * float(state.lr_scale) * 2 >= 2.0 * (1 - 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "`lr` must be positive and finite, got 0.0"),
        ({"threshold": -1.0}, "`threshold` must be positive and finite, got -1.0"),
        ({"threshold": float("nan")}, "`threshold` must be positive and finite"),
        ({"measure_every": 0}, "`measure_every` must be at least 1"),
    ],
)
def test_bad_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_an_observation_without_an_eigenvalue_is_refused():
    controller = make()
    with pytest.raises(ValueError, match="no `eigenvalue`, which stability_limited needs"):
        controller.update(Observation(1000), controller.init())
