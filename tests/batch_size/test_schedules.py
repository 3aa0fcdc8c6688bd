"""Rules that need no measurement."""

import numpy as np
import pytest

from hessabs.batch_size import (
    NEVER,
    Observation,
    constant,
    linear_scaling,
    with_adversarial,
    with_coupling,
    with_decay,
)


def test_constant_decays_by_steps_and_then_rests():
    controller = with_decay(constant(128), (1000, 2000), 0.5)
    state = controller.init()
    seen = []
    while int(state.observe_at) != NEVER:
        samples = int(state.observe_at)
        state = controller.update(Observation(samples), state)
        seen.append((samples, int(state.batch_size), float(state.lr_scale), bool(state.measure)))
    assert seen == [(1000, 128, 0.5, False), (2000, 128, 0.25, False)]


def test_constant_ends_adversarial_examples():
    controller = with_adversarial(constant(8), 0.25, until=64)
    state = controller.init()
    assert (float(state.adversarial_fraction), int(state.observe_at)) == (0.25, 64)
    assert float(controller.update(Observation(64), state).adversarial_fraction) == 0.0


def test_constant_refuses():
    with pytest.raises(ValueError, match="`initial` must lie in"):
        constant(0)


def test_warm_up_is_the_same_increment_at_every_update_to_the_ratio():
    controller = with_decay(linear_scaling(640, base_batch_size=128, warmup=3200), (6400,), 0.2)
    state, scales = controller.init(), []
    for update in range(12):
        scales.append(float(state.lr_scale))
        if 640 * (update + 1) >= int(state.observe_at):
            state = controller.update(Observation(640 * (update + 1)), state)
    np.testing.assert_allclose(scales[:7], [1.0, 1.8, 2.6, 3.4, 4.2, 5.0, 5.0], rtol=1e-6)
    assert scales[5] == 5.0
    np.testing.assert_allclose(scales[10:], [1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(("coupling", "last"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_linear_scaling_without_warm_up_starts_at_the_top(coupling, last):
    state = with_coupling(linear_scaling(512, base_batch_size=128, warmup=0), coupling).init()
    assert (float(state.lr_scale), int(state.observe_at)) == (last, NEVER)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_batch_size": 0}, "`base_batch_size` must be at least 1, got 0"),
        ({"warmup": -1}, "`warmup` must be at least 0 examples, got -1"),
    ],
)
def test_linear_scaling_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        linear_scaling(**{"batch_size": 8, "base_batch_size": 2, "warmup": 10, **options})
