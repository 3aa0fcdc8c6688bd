"""The noise of the gradient: estimates against a population that is known, and the rules that use them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.batch_size import (
    GradientStatistics,
    Observation,
    adascale,
    gradient_noise_scale,
    gradient_statistics,
    noise_and_signal,
    norm_test,
    with_decay,
)


def gradients(parts, part_size, seed=0, dimension=30, sigma=0.5):
    """Mean gradients of parts whose examples have mean (1, .., 1) / 5 and independent noise of size sigma."""
    noise = np.random.default_rng(seed).normal(size=(parts, part_size, dimension)) * sigma
    return np.asarray((0.2 + noise).mean(axis=1), np.float32)


def test_statistics_are_the_moments():
    stacked = gradients(6, 4)
    got = gradient_statistics({"a": jnp.asarray(stacked[:, :10]), "b": jnp.asarray(stacked[:, 10:])}, 4)
    mean = stacked.mean(axis=0)
    np.testing.assert_allclose(got.mean_square, (stacked**2).sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(got.square_mean, (mean**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(got.inner_square, ((stacked @ mean) ** 2).mean(), rtol=1e-5)
    assert (int(got.part_size), int(got.num_parts)) == (4, 6)


def test_devices_are_parts_too():
    stacked = gradients(6, 4)
    want = gradient_statistics({"w": stacked}, 4)
    split = stacked.reshape(3, 2, -1)
    got = jax.vmap(lambda g: gradient_statistics({"w": g}, 4, axis_name="i"), axis_name="i")(split)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, np.full(3, b), rtol=1e-5)


def test_estimates_are_unbiased():
    # tr(Sigma) = 30 * 0.25 = 7.5 and |G|^2 = 30 * 0.04 = 1.2; standard errors over 400 draws are below 0.1.
    stacked = np.stack([gradients(4, 8, seed) for seed in range(400)])
    draws = jax.jit(jax.vmap(lambda g: gradient_statistics({"w": g}, 8)))(stacked)
    noise, signal = (float(jnp.mean(estimate)) for estimate in jax.vmap(noise_and_signal)(draws))
    assert abs(noise - 7.5) < 0.3
    assert abs(signal - 1.2) < 0.1
    # The plain ||g||^2 is not: it has tr(Sigma) / 32 too much.
    assert abs(float(jnp.mean(draws.square_mean)) - (1.2 + 7.5 / 32)) < 0.05


def test_estimates_are_the_papers_formula():
    s = GradientStatistics(16, 5, 3.0, 2.0)
    small, big = 16, 80
    signal = (big * 2.0 - small * 3.0) / (big - small)
    noise = (3.0 - 2.0) / (1 / small - 1 / big)
    np.testing.assert_allclose(noise_and_signal(s), (noise, signal), rtol=1e-6)


def observe(controller, *statistics, every=1000):
    state = controller.init()
    for k, s in enumerate(statistics, start=1):
        state = controller.update(Observation(every * k, gradient=s), state)
    return state


def test_noise_scale_sets_the_batch_and_averages_before_it_divides():
    low, high = GradientStatistics(64, 2, 10.0, 6.0), GradientStatistics(64, 2, 14.0, 2.0)
    controller = gradient_noise_scale(128, 128 * 64, measure_every=1000, average_over=2, growth_factor=64.0)
    # noise 512 and 1536, signal 2 and -10: the mean signal turns negative and decides nothing.
    assert int(observe(controller, low).batch_size) == 256
    assert int(observe(controller, low, high).batch_size) == 256
    middle = GradientStatistics(64, 2, 14.0, 8.0)  # noise 768, signal 2: means (128 + 384) / (0.5 + 1)
    np.testing.assert_allclose(observe(controller, low, middle).rule.average, (512.0, 1.5))
    assert int(observe(controller, low, middle).batch_size) == 256


def test_growth_at_once_is_limited():
    loud = GradientStatistics(64, 2, 10.0, 5.01)
    controller = gradient_noise_scale(128, 128 * 64, measure_every=1000, average_over=1, growth_factor=4.0)
    assert [int(observe(controller, *[loud] * k).batch_size) for k in (1, 2, 3)] == [512, 2048, 8192]


@pytest.mark.parametrize("make", [gradient_noise_scale, norm_test])
def test_one_part_says_nothing_about_noise(make):
    controller = make(128, 1024, measure_every=1000)
    assert int(observe(controller, GradientStatistics(128, 1, 10.0, 10.0)).batch_size) == 128


def test_the_norm_test_grows_to_the_smallest_batch_that_passes():
    # Variance of an example 64 * 2 * (3 - 1) = 256, ||g||^2 = 1: b >= 256 / tolerance^2.
    statistics = GradientStatistics(64, 2, 3.0, 1.0)
    sizes = {
        tolerance: int(
            observe(norm_test(128, 4096, measure_every=1000, tolerance=tolerance), statistics).batch_size
        )
        for tolerance in (2.0, 1.0, 0.9, 0.5)
    }
    assert sizes == {2.0: 128, 1.0: 256, 0.9: 384, 0.5: 1024}


def test_the_inner_product_test_looks_along_the_gradient_only():
    # All noise is across the mean gradient: the norm test grows, the inner-product test does not.
    stacked = {"w": jnp.array([[1.0, 3.0], [1.0, -3.0]])}
    statistics = gradient_statistics(stacked, 64)
    assert int(observe(norm_test(128, 4096, measure_every=1000), statistics).batch_size) == 64 * 18
    inner = norm_test(128, 4096, measure_every=1000, test="inner_product")
    assert int(observe(inner, statistics).batch_size) == 128
    along = gradient_statistics({"w": jnp.array([[4.0, 0.0], [-2.0, 0.0]])}, 64)  # 64 * 2 * 9 along g = 1
    assert int(observe(inner, along).batch_size) == 64 * 18


def test_the_gain_of_adascale():
    rule = adascale(512, base_batch_size=128, measure_every=512, average_over=1)
    controller = with_decay(rule, (600,), 0.5)
    silent, all_noise = GradientStatistics(256, 2, 2.0, 2.0), GradientStatistics(256, 2, 2.0, 1.0)
    assert float(observe(controller, silent, every=512).lr_scale) == 1.0
    state = observe(controller, all_noise, every=512)
    assert float(state.lr_scale) == 4.0
    # The update so far was worth one of the base batch (gain 1), the next is worth four: 640 examples, a decay.
    assert int(state.rule.progress) == 128
    state = controller.update(Observation(1024, gradient=all_noise), state)
    assert int(state.rule.progress) == 128 + 512
    assert float(state.lr_scale) == 2.0


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (gradient_noise_scale, {"scale": 0.0}, "`scale` must be positive and finite, got 0.0"),
        (
            gradient_noise_scale,
            {"average_over": 3},
            "`average_over` must be a power of two observations, got 3",
        ),
        (gradient_noise_scale, {"growth_factor": 1.0}, "`growth_factor` must be above 1"),
        (norm_test, {"test": "t"}, "`test` must be one of"),
        (norm_test, {"tolerance": 0.0}, "`tolerance` must be positive and finite"),
        (norm_test, {"measure_every": 0}, "`measure_every` must be at least 1"),
    ],
)
def test_bad_parameters(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**{"initial": 2, "maximum": 8, "measure_every": 5, **options})


def test_bad_adascale():
    with pytest.raises(ValueError, match="`base_batch_size` must divide batch_size=512, got 100"):
        adascale(512, base_batch_size=100, measure_every=1)


@pytest.mark.parametrize("make", [gradient_noise_scale, norm_test])
def test_an_observation_without_a_gradient_is_refused(make):
    controller = make(2, 8, measure_every=5)
    with pytest.raises(ValueError, match=f"no `gradient`, which {make.__name__} needs"):
        controller.update(Observation(5, 1.0), controller.init())


def test_missing_inner_products_are_named():
    controller = norm_test(2, 8, measure_every=5, test="inner_product")
    with pytest.raises(ValueError, match="no `inner_square`"):
        controller.update(Observation(5, gradient=GradientStatistics(1, 2, 3.0, 2.0)), controller.init())


@pytest.mark.parametrize(
    ("maximum", "growth_factor", "sizes"),
    [
        (1024, 1.5, [256, 384, 512, 768, 1024, 1024]),  # 128 * max(f + 1, floor(1.5 f))
        (1024, 1.9, [256, 384, 640, 1024, 1024, 1024]),
        (300, 2.0, [256, 300, 300, 300, 300, 300]),  # a maximum that is no multiple
        (200, 2.0, [200] * 6),
    ],
)
def test_noise_without_end_grows_the_batch_to_the_maximum(maximum, growth_factor, sizes):
    noisy = GradientStatistics(64, 2, 3.0, 1.501)
    rule = gradient_noise_scale(128, maximum, measure_every=1000, growth_factor=growth_factor, average_over=1)
    state, got = rule.init(), []
    for i in range(1, 7):
        state = rule.update(Observation(1000 * i, gradient=noisy), state)
        got.append(int(state.batch_size))
    assert got == sizes
    assert not bool(state.measure)
