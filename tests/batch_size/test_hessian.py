"""ABS and ABSA against their description (arXiv:1810.01021, Algorithm 1), one line of it a test."""

import numpy as np
import pytest

from hessabs.batch_size import (
    NEVER,
    Observation,
    absa,
    hessian_adaptive,
    mean_and_error,
    with_adversarial,
    with_coupling,
    with_decay,
)

EPOCH = 1000


def run(controller, values, every=EPOCH):
    """The states after measurements at whole epochs."""
    state, states = controller.init(), []
    for epoch, value in enumerate(values, start=1):
        state = controller.update(Observation(epoch * every, value), state)
        states.append(state)
    return states


def batch_sizes(controller, values):
    return [int(state.batch_size) for state in run(controller, values)]


def test_halving_since_the_last_growth_doubles_batch_and_rate():
    # 5 is no half of 8; 4 is, and becomes the reference; 3 is no half of 4; 1.9 is.
    states = run(hessian_adaptive(128, 1024, measure_every=EPOCH), [8.0, 5.0, 4.0, 3.0, 1.9])
    assert [int(s.batch_size) for s in states] == [128, 128, 256, 256, 512]
    assert [float(s.lr_scale) for s in states] == [1.0, 1.0, 2.0, 2.0, 4.0]


def test_the_first_measurement_is_the_reference_whatever_it_is():
    assert batch_sizes(hessian_adaptive(1, 8, measure_every=EPOCH), [1e-6, 1e-6, 4e-7]) == [1, 1, 2]


def test_patience_grows_without_a_fall_and_keeps_the_reference():
    controller = hessian_adaptive(1, 64, measure_every=EPOCH, patience=3)
    # Growth at the third measurement by patience; 3 is then still held against 8 and not against 9.
    assert batch_sizes(controller, [8.0, 9.0, 9.0, 4.5, 4.0]) == [1, 1, 2, 2, 4]
    assert batch_sizes(controller, [8.0] * 7) == [1, 1, 2, 2, 2, 4, 4]


def test_without_patience_only_a_fall_grows():
    assert batch_sizes(hessian_adaptive(1, 64, measure_every=EPOCH, patience=None), [8.0] * 30)[-1] == 1


def test_at_the_maximum_measurements_and_adversarial_examples_end():
    controller = absa(128, 256, measure_every=EPOCH)
    grown = run(controller, [8.0, 4.0])[-1]
    assert int(grown.batch_size) == 256
    assert not bool(grown.measure)
    assert int(grown.observe_at) == NEVER
    assert float(grown.adversarial_fraction) == 0.0


def test_the_fraction_halves_at_each_growth():
    controller = absa(1, 64, measure_every=EPOCH)
    fractions = [float(s.adversarial_fraction) for s in run(controller, [16.0, 8.0, 4.0, 4.0, 2.0])]
    assert fractions == [np.float32(f) for f in (0.2, 0.1, 0.05, 0.05, 0.025)]


def test_decay_and_growth_multiply():
    controller = with_decay(hessian_adaptive(1, 64, measure_every=EPOCH), (2 * EPOCH,), 0.2)
    assert [float(s.lr_scale) for s in run(controller, [16.0, 8.0, 4.0])] == [
        1.0,
        np.float32(2 * np.float32(0.2)),
        np.float32(4 * np.float32(0.2)),
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 0.0, -100.0])
def test_an_invalid_eigenvalue_neither_grows_nor_is_a_reference(bad):
    controller = hessian_adaptive(1, 64, measure_every=EPOCH, patience=None)
    assert batch_sizes(controller, [bad, 8.0, bad, 5.0, 4.0, bad]) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0])
def test_patience_waits_for_a_valid_eigenvalue(bad):
    controller = hessian_adaptive(1, 64, measure_every=EPOCH, patience=2)
    assert batch_sizes(controller, [8.0, bad, bad, 8.0]) == [1, 1, 1, 2]


def test_a_growth_factor_that_is_no_integer_keeps_multiples_and_moves():
    controller = hessian_adaptive(10, 70, measure_every=EPOCH, growth_factor=1.5)
    assert batch_sizes(controller, [2.0**-k for k in range(7)]) == [10, 20, 30, 40, 60, 70, 70]


def test_an_overdue_measurement_is_asked_for_again():
    # An update of 4096 examples passes a decay at 1000 AND the measurement at 1024: the observation was
    # announced without one, so the rule must still ask, or it would never measure again.
    controller = with_decay(hessian_adaptive(4096, 8192, measure_every=1024), (1000,), 0.5)
    state = controller.init()
    assert int(state.observe_at) == 1000
    assert not bool(state.measure)
    state = controller.update(Observation(4096, float("nan")), state)
    assert bool(state.measure)
    assert 4096 < int(state.observe_at) <= 8192
    state = controller.update(Observation(8192, 8.0), state)
    assert bool(state.measure)
    assert int(controller.update(Observation(12288, 4.0), state).batch_size) == 8192


def test_measurements_keep_to_their_grid_when_an_update_ends_late():
    controller = hessian_adaptive(300, 600, measure_every=1000)
    state = controller.update(Observation(1200, 8.0), controller.init())
    assert int(state.observe_at) == 2000


def test_a_measurement_that_was_not_asked_for_is_not_counted():
    controller = with_decay(hessian_adaptive(1, 64, measure_every=EPOCH, patience=None), (500,), 0.5)
    state = controller.update(Observation(500, 8.0), controller.init())
    state = controller.update(Observation(1000, 2.0), state)  # the first one asked for: the reference
    assert int(state.batch_size) == 1
    assert int(controller.update(Observation(2000, 1.0), state).batch_size) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure_every": 0}, "`measure_every` must be at least 1 .* got 0"),
        ({"eigenvalue_decrease": 1.0}, "`eigenvalue_decrease` must be above 1, got 1.0"),
        ({"eigenvalue_decrease": float("nan")}, "`eigenvalue_decrease` must be above 1"),
        ({"growth_factor": 0.5}, "`growth_factor` must be above 1, got 0.5"),
        ({"patience": 0}, "`patience` must be at least 1 .* got 0"),
        ({"maximum": 3}, "`initial` must lie in .* got 4"),
        ({"noise_factor": -1.0}, "`noise_factor` must be at least 0, got -1.0"),
        ({"signal": "trace"}, "`signal` must be one of .* got 'trace'"),
        ({"block": "first"}, "`block` must be one of .* got 'first'"),
        ({"compatibility": "pytorch"}, "`compatibility` must be one of .* got 'pytorch'"),
        ({"compatibility": "hessianflow", "growth_factor": 4.0}, "one ratio for .* got \\[2.0, 4.0\\]"),
    ],
)
def test_bad_parameters_are_named_with_what_was_got(options, message):
    with pytest.raises(ValueError, match=message):
        hessian_adaptive(**{"initial": 4, "maximum": 16, "measure_every": 10, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction_decrease": 0.5}, "`decrease` must be at least 1, got 0.5"),
        ({"adversarial_fraction": -0.1}, "`fraction` must lie in .* got -0.1"),
        ({"adversarial_until": -5}, "`until` must be at least 0 examples, got -5"),
        (
            {"fraction_decrease": 3.0, "compatibility": "hessianflow"},
            "one ratio for .* got 2.0, 3.0 and 'linear'",
        ),
    ],
)
def test_bad_adversarial_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        absa(4, 16, measure_every=10, **options)


def test_the_published_rule_has_the_linear_coupling():
    rule = hessian_adaptive(4, 16, measure_every=10, compatibility="hessianflow")
    with pytest.raises(ValueError, match=r"one ratio for .* the linear coupling, got 2.0, 1.0 and 'sqrt'"):
        with_coupling(rule, "sqrt")


def test_absa_is_abs_with_a_fraction_around_it():
    one = absa(2, 16, measure_every=10, patience=2, fraction_decrease=3.0, adversarial_until=45)
    two = with_adversarial(hessian_adaptive(2, 16, measure_every=10, patience=2), 0.2, decrease=3.0, until=45)
    for a, b in zip(run(one, [5.0] * 6, every=10), run(two, [5.0] * 6, every=10), strict=True):
        np.testing.assert_array_equal(a[:3], b[:3])


def test_an_observation_without_an_eigenvalue_is_refused():
    controller = hessian_adaptive(4, 16, measure_every=10)
    with pytest.raises(ValueError, match="no `eigenvalue`"):
        controller.update(Observation(10), controller.init())


@pytest.mark.parametrize(("coupling", "scale"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_the_rate_follows_the_batch_as_asked(coupling, scale):
    controller = with_coupling(hessian_adaptive(1, 64, measure_every=EPOCH), coupling)
    state = run(controller, [8.0, 4.0, 2.0])[-1]
    assert (int(state.batch_size), float(state.lr_scale)) == (4, scale)


def test_the_eigenvalue_times_the_rate_must_fall_by_more_after_a_growth():
    controller = hessian_adaptive(1, 64, measure_every=EPOCH, signal="eigenvalue_times_lr", patience=None)
    # Halving 8 grows and doubles the rate: 4 * 1 is then held against 2 * 2 and 1 * 2.
    assert batch_sizes(controller, [8.0, 4.0, 2.0, 1.0]) == [1, 2, 2, 4]
    # A schedule outside of the rule halves the rate: 4 * 0.5 is a fall by four.
    state = controller.update(Observation(EPOCH, 8.0), controller.init())
    assert int(controller.update(Observation(2 * EPOCH, 7.9, lr_scale=0.5), state).batch_size) == 2


def test_a_fall_must_be_larger_than_its_noise():
    controller = hessian_adaptive(1, 64, measure_every=EPOCH, noise_factor=2.0, patience=None)

    def grows(first_error, second_error):
        state = controller.init()
        for samples, value, error in ((EPOCH, 8.0, first_error), (2 * EPOCH, 4.0, second_error)):
            state = controller.update(Observation(samples, value, standard_error=error), state)
        return int(state.batch_size) == 2

    assert grows(0.0, 1.9)
    assert not grows(0.0, 2.1)
    assert not grows(2.1, 0.0)
    assert not grows(1.5, 1.5)  # 2 * sqrt(4.5) > 4
    assert not grows(0.0, float("nan"))
    assert not grows(0.0, -1.0)


def test_mean_and_error_of_several_batches():
    mean, error = mean_and_error(np.array([1.0, 2.0, 3.0, 6.0]))
    assert float(mean) == 3.0
    np.testing.assert_allclose(error, np.std([1, 2, 3, 6], ddof=1) / 2, rtol=1e-6)
    with pytest.raises(ValueError, match="at least 2, got"):
        mean_and_error(np.ones(1))


def test_the_block_is_what_is_measured():
    assert hessian_adaptive(1, 2, measure_every=1).measures == "eigenvalue"
    assert hessian_adaptive(1, 2, measure_every=1, block="last_layer").measures == "last_layer_eigenvalue"


def test_measuring_three_times_an_epoch_grows_three_times_as_soon():
    often = hessian_adaptive(1, 64, measure_every=EPOCH // 3)
    state, grown_at = often.init(), []
    value = 64.0
    while int(state.observe_at) <= 2 * EPOCH:
        samples, value, before = int(state.observe_at), value / 2, int(state.batch_size)
        state = often.update(Observation(samples, value), state)
        if int(state.batch_size) > before:
            grown_at.append(samples)
    assert grown_at[:4] == [666, 999, 1332, 1665]
