"""The critical batch: against the rules' own estimate, a jackknife by hand, and a noise that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.batch_size import gradient_statistics, noise_and_signal
from hessabs.curvature import critical_batch_size


def loss_fn(params, batch):
    return jnp.mean(
        jnp.sum((params["a"]["w"] - batch[:, :2]) ** 2, -1) / 2 + (params["b"]["w"] - batch[:, 2]) ** 2
    )


PARAMS = {"a": {"w": jnp.zeros(2)}, "b": {"w": jnp.zeros(())}}
EXAMPLES = np.random.default_rng(0).normal([1, 0, 2], [1, 2, 0.5], (60, 3)).astype(np.float32)
BATCHES = [EXAMPLES[i : i + 10] for i in range(0, 60, 10)]
GRADIENTS = np.stack([[-b[:, 0].mean(), -b[:, 1].mean(), -2 * b[:, 2].mean()] for b in BATCHES])


def estimate(gradients, size=10):
    """The two estimates of McCandlish et al., from the gradients themselves."""
    noise = size * gradients.var(axis=0, ddof=1).sum()
    return noise, (gradients.mean(0) ** 2).sum() - noise / size / len(gradients)


def test_it_is_the_estimate_of_the_rules_and_of_the_gradients_by_hand():
    found = critical_batch_size(loss_fn, PARAMS, BATCHES)
    noise, signal = estimate(GRADIENTS)
    np.testing.assert_allclose(
        [found.noise, found.signal, found.value], [noise, signal, noise / signal], rtol=1e-4
    )
    ours = noise_and_signal(gradient_statistics({"g": jnp.asarray(GRADIENTS)}, 10))
    np.testing.assert_allclose([found.noise, found.signal], ours, rtol=1e-4)


def test_the_error_is_that_of_a_jackknife_by_hand():
    left = []
    for i in range(6):
        noise, signal = estimate(np.delete(GRADIENTS, i, 0))
        left.append(noise / signal)
    error = np.sqrt(5 / 6 * np.sum((left - np.mean(left)) ** 2))
    np.testing.assert_allclose(critical_batch_size(loss_fn, PARAMS, BATCHES).standard_error, error, rtol=1e-3)


def test_layers_are_their_own_columns_and_a_scale_is_divided_by():
    found = critical_batch_size(loss_fn, PARAMS, BATCHES)
    noise, signal = estimate(GRADIENTS[:, :2])
    assert found.layers.keys() == {"a", "b"}
    np.testing.assert_allclose(found.layers["a"][0], noise / signal, rtol=1e-4)
    scale = {"a": {"w": jnp.array([4.0, 1.0])}, "b": {"w": jnp.array(0.25)}}
    noise, signal = estimate(GRADIENTS / np.sqrt([4.0, 1.0, 0.25]))
    np.testing.assert_allclose(
        critical_batch_size(loss_fn, PARAMS, BATCHES, scale=scale).value, noise / signal, rtol=1e-4
    )


@pytest.mark.slow
def test_the_mean_over_many_draws_is_the_true_noise_and_the_error_says_how_far_off():
    rng, found = np.random.default_rng(1), []
    for _ in range(40):  # tr(Sigma) = 1 + 4 + 4 * 0.25 = 6, |G|^2 = 1 + 16 = 17
        draws = rng.normal([1, 0, 2], [1, 2, 0.5], (200, 3)).astype(np.float32)
        found.append(critical_batch_size(loss_fn, PARAMS, list(draws.reshape(20, 10, 3))))
    values, errors = np.array([(f.value, f.standard_error) for f in found]).T
    assert abs(values.mean() - 6 / 17) < 4 * values.std() / np.sqrt(40)
    assert 0.7 < errors.mean() / values.std() < 1.4


def test_noise_that_drowns_the_gradient_gives_no_finite_batch_and_bad_batches_are_refused():
    drowned = [np.array([[s, s, s]], np.float32) for s in (1, -1, 1, -1)]
    found = critical_batch_size(loss_fn, PARAMS, drowned)
    assert found.value == np.inf
    assert np.isnan(found.standard_error)
    with pytest.raises(ValueError, match=r"three or more of one size, got sizes \[10, 10\]"):
        critical_batch_size(loss_fn, PARAMS, BATCHES[:2])
    with pytest.raises(ValueError, match=r"got sizes \[10, 10, 9\]"):
        critical_batch_size(loss_fn, PARAMS, [*BATCHES[:2], BATCHES[2][:9]])


def test_a_function_that_opens_the_batches_is_called_for_each_reading():
    opened = []

    def batches():
        opened.append(1)
        return (jax.device_put(b) for b in BATCHES)

    assert (
        critical_batch_size(loss_fn, PARAMS, batches).value
        == critical_batch_size(loss_fn, PARAMS, BATCHES).value
    )
    assert len(opened) == 2


def test_batches_that_can_be_read_only_once_are_refused():
    with pytest.raises(ValueError, match="can be read only once"):
        critical_batch_size(loss_fn, PARAMS, iter(BATCHES))


@pytest.mark.parametrize("scale", [1e-22, 1.0, 1e20])
@pytest.mark.parametrize(
    "signal", [1.0, 1000.0]
)  # a thousand times the noise: a difference of squares is rounding
def test_any_size_of_gradients_and_of_their_signal(scale, signal):
    examples = np.random.default_rng(0).normal(signal, 1, (20, 16, 100)).astype(np.float32)

    def loss(w, batch):
        return scale * jnp.mean(jnp.sum((w - batch) ** 2, -1)) / 2

    found = critical_batch_size(loss, jnp.zeros(100), list(examples))
    noise, square = estimate(-examples.astype(np.float64).mean(axis=1), size=16)
    np.testing.assert_allclose(
        [found.noise / scale**2, found.signal / scale**2, found.value],
        [noise, square, noise / square],
        rtol=1e-4,
    )


def test_a_gradient_that_is_nan_is_no_infinite_batch():
    found = critical_batch_size(lambda w, x: jnp.mean(jnp.sqrt(x * w)), jnp.float32(-1), [np.ones(2)] * 3)
    assert np.isnan([found.value, found.standard_error, found.noise, found.signal]).all()


@pytest.mark.parametrize("wrong", [0.0, -1.0, np.nan])
def test_a_scale_that_is_not_positive_is_refused(wrong):
    with pytest.raises(ValueError, match="`scale` must be above 0 and finite"):
        critical_batch_size(
            loss_fn, PARAMS, BATCHES, scale={"a": {"w": jnp.array([1.0, wrong])}, "b": {"w": 1.0}}
        )


def test_under_a_trace_it_says_so():
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda batches: critical_batch_size(loss_fn, PARAMS, list(batches)).value)(np.stack(BATCHES))
