"""Curvature along a step and between two halves of a preconditioner, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import curvature

KEY = jax.random.key(0)
X, Y = jax.random.normal(KEY, (12, 3)), jnp.arange(12) % 2
PARAMS = {"w": 0.3 * jax.random.normal(KEY, (3, 2)), "b": jnp.array([0.1, -0.2])}


def loss_fn(params, batch):
    x, y = batch
    logits = jnp.tanh(x @ params["w"]) + params["b"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def dense(batch):
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    function = lambda p: loss_fn(unravel(p), batch)  # noqa: E731
    return np.asarray(jax.grad(function)(flat)), np.asarray(jax.hessian(function)(flat))


@pytest.fixture(scope="module")
def whole():
    return dense((X, Y))


def ravel(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0])


def test_slope_and_curvature_are_those_of_the_dense_hessian(whole):
    gradient, matrix = whole
    step = jax.tree.map(lambda p: -0.5 * p + 0.01, PARAMS)
    s = ravel(step)
    found = curvature.sharpness_along(loss_fn, PARAMS, (X, Y), step)
    wanted = [s @ matrix @ s / (s @ s), gradient @ s, s @ matrix @ s, s @ matrix @ s / -(gradient @ s)]
    if gradient @ s >= 0:
        wanted[3] = np.inf
    np.testing.assert_allclose([float(x) for x in found], wanted, rtol=1e-4)


def test_the_loss_along_a_step_of_a_quadratic_is_least_at_ratio_1_and_back_at_ratio_2():
    matrix = jnp.diag(jnp.array([1.0, 10.0]))
    loss = lambda w, _: w @ matrix @ w / 2  # noqa: E731
    w = jnp.array([2.0, 1.0])
    direction = -jax.grad(loss)(w, None)
    unit = curvature.sharpness_along(loss, w, None, direction).ratio
    least, back = direction / unit, 2 * direction / unit
    assert float(curvature.sharpness_along(loss, w, None, least).ratio) == pytest.approx(1, rel=1e-5)
    slope_at_end = jax.grad(loss)(w + least, None) @ direction
    assert float(slope_at_end) == pytest.approx(0, abs=1e-4)
    assert float(loss(w + back, None)) == pytest.approx(float(loss(w, None)), rel=1e-5)


def test_a_step_that_goes_up_or_nowhere_has_no_finite_or_no_ratio():
    loss = lambda w, _: jnp.sum(w**2)  # noqa: E731
    up = curvature.sharpness_along(loss, jnp.ones(2), None, jnp.ones(2))
    assert float(up.ratio) == np.inf
    assert float(up.slope) == 4
    nowhere = curvature.sharpness_along(loss, jnp.ones(2), None, jnp.zeros(2))
    assert [float(x) for x in nowhere] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="must have the structure of `params`"):
        curvature.sharpness_along(loss, jnp.ones(2), None, jnp.ones(3))


@pytest.mark.slow
def test_batch_sharpness_is_the_mean_over_batches_of_their_own():
    batches = [(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)]
    values = [g @ h @ g / (g @ g) for g, h in map(dense, batches)]
    found = curvature.batch_sharpness(loss_fn, PARAMS, batches)
    np.testing.assert_allclose(found.value, np.mean(values), rtol=1e-4)
    np.testing.assert_allclose(found.standard_error, np.std(values, ddof=1) / np.sqrt(3), rtol=1e-3)
    assert np.isnan(curvature.batch_sharpness(loss_fn, PARAMS, batches[:1]).standard_error)
    with pytest.raises(ValueError, match="gave no batch"):
        curvature.batch_sharpness(loss_fn, PARAMS, [])


@pytest.mark.parametrize("whole_set", [False, True])
def test_the_spectrum_of_a_preconditioned_operator_is_that_of_the_product(whole, whole_set):
    _, matrix = whole
    scale = jax.tree.map(lambda p: 0.5 + jnp.abs(p), PARAMS)
    operator = curvature.hessian(loss_fn, PARAMS, (X, Y))
    if whole_set:
        operator = curvature.dataset_hessian(loss_fn, PARAMS, [(X[:6], Y[:6]), (X[6:], Y[6:])])
    wanted = np.sort(np.linalg.eigvals(np.diag(1 / ravel(scale)) @ matrix).real)[::-1]
    start = jax.tree.map(jnp.ones_like, PARAMS)
    found = curvature.eigsh(curvature.preconditioned(operator, scale), start, 2)
    np.testing.assert_allclose(found.eigenvalues, wanted[:2], rtol=1e-3)


def test_the_scale_of_adam_is_what_its_step_was_divided_by():
    tx = optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(0.1, b1=0.0, b2=0.9, weight_decay=0.0))
    state, gradients = tx.init(PARAMS), [PARAMS, jax.tree.map(lambda p: 2 * p, PARAMS)]
    for gradient in gradients:
        step, state = tx.update(gradient, state, PARAMS)
    scale = curvature.adam_scale(state, b2=0.9)
    np.testing.assert_allclose(
        ravel(step), ravel(jax.tree.map(lambda g, s: -0.1 * g / s, gradients[1], scale)), rtol=1e-5
    )


def test_what_has_no_scale_is_refused():
    with pytest.raises(ValueError, match="above 0 and finite"):
        curvature.preconditioned(lambda v: v, jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="made no update"):
        curvature.adam_scale(optax.adam(0.1).init(PARAMS), b2=0.999)
    with pytest.raises(ValueError, match="one scale_by_adam in it, got 0"):
        curvature.adam_scale(optax.sgd(0.1).init(PARAMS), b2=0.999)


@pytest.mark.parametrize("power", [2, 4])
def test_what_is_not_known_is_no_ratio(power):
    found = curvature.sharpness_along(
        lambda w, x: jnp.mean((x @ w) ** power), jnp.full(3, jnp.nan), X, jnp.ones(3)
    )
    assert np.isnan(found.ratio)


@pytest.mark.parametrize("length", [1e-30, 1e-19, 1.0, 1e20])
def test_a_step_of_any_length(length):
    loss = lambda w, _: (w[0] ** 2 + 4 * w[1] ** 2) / 2  # noqa: E731
    found = curvature.sharpness_along(loss, jnp.ones(2), None, -length * jnp.ones(2))
    np.testing.assert_allclose(
        [found.sharpness, found.slope, found.ratio], [2.5, -5 * length, length], rtol=1e-6
    )
