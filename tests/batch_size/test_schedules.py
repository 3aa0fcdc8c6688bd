"""Rules that need no measurement."""

import pytest

from hessabs.batch_size import NEVER, Observation, constant


def test_constant_decays_by_steps_and_then_rests():
    controller = constant(128, lr_decay_at=(1000, 2000), lr_decay=0.5)
    state = controller.init()
    seen = []
    while int(state.observe_at) != NEVER:
        samples = int(state.observe_at)
        state = controller.update(Observation(samples), state)
        seen.append((samples, int(state.batch_size), float(state.lr_scale), bool(state.measure)))
    assert seen == [(1000, 128, 0.5, False), (2000, 128, 0.25, False)]


def test_constant_ends_adversarial_examples():
    controller = constant(8, adversarial_fraction=0.25, adversarial_until=64)
    state = controller.init()
    assert (float(state.adversarial_fraction), int(state.observe_at)) == (0.25, 64)
    assert float(controller.update(Observation(64), state).adversarial_fraction) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`initial` must lie in"),
        ({"adversarial_fraction": 1.5}, "`adversarial_fraction` must lie in .* got 1.5"),
        ({"adversarial_until": -1}, "`adversarial_until` must be at least 0 .* got -1"),
        ({"lr_decay": 2.0}, "`lr_decay` must lie in .* got 2.0"),
    ],
)
def test_constant_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        constant(**{"batch_size": 8, **options})
