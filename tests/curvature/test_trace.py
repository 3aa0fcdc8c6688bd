"""Stochastic estimates against exact traces, and their standard errors against their scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature

pytestmark = pytest.mark.sampled

LOOPS = ("host", "device")
SPECTRUM = np.r_[20.0, 10.0, np.linspace(-1, 1, 58)]
ESTIMATES = {
    "hutchinson": lambda *args, **options: curvature.trace(*args, **options),
    "hutch++": lambda *args, **options: curvature.trace(*args, method="hutch++", **options),
    "frobenius": lambda *args, **options: curvature.frobenius_norm(*args, **options),
}


def _exact(name, problem):
    return np.linalg.norm(problem.matrix) if name == "frobenius" else np.trace(problem.matrix)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ESTIMATES)
def test_estimate_lies_within_its_standard_error(matrix_operator, name, loop):
    problem = matrix_operator(SPECTRUM)
    result = ESTIMATES[name](problem.matvec, problem.v0, jax.random.key(0), num_matvecs=57, loop=loop)
    assert result.num_matvecs == 57
    assert 0 < float(result.standard_error) < 0.2 * _exact(name, problem)
    assert abs(float(result.value) - _exact(name, problem)) < 4 * float(result.standard_error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATES)
def test_standard_error_is_the_scatter(matrix_operator, name):
    problem = matrix_operator(SPECTRUM)
    results = [
        ESTIMATES[name](problem.matvec, problem.v0, jax.random.key(i), num_matvecs=45) for i in range(60)
    ]
    scatter = np.std([float(r.value) for r in results])
    stated = np.sqrt(np.mean([float(r.standard_error) ** 2 for r in results]))
    assert 0.7 < scatter / stated < 1.4


@pytest.mark.slow
def test_hutchpp_has_the_smaller_error_where_few_eigenvalues_dominate(matrix_operator):
    problem = matrix_operator(np.r_[1000.0, 300.0, np.full(98, 0.01)])
    plain, better = (
        curvature.trace(problem.matvec, problem.v0, jax.random.key(0), num_matvecs=30, method=m)
        for m in ("hutchinson", "hutch++")
    )
    assert float(better.standard_error) < 1e-2 * float(plain.standard_error)
    np.testing.assert_allclose(better.value, np.trace(problem.matrix), rtol=1e-4)


def test_hutchpp_is_exact_where_there_are_no_more_dimensions_than_products():
    # Two probes of what a basis leaves of three dimensions agree by chance: an error of 0 of a wrong value.
    values = jnp.array([12.0, 48.0, 108.0])
    for seed in range(10):
        found = curvature.trace(
            lambda v: values * v, jnp.ones(3), jax.random.key(seed), num_matvecs=6, method="hutch++"
        )
        assert float(found.value) == 168
        assert float(found.standard_error) == 0
        assert found.num_matvecs == 3


@pytest.mark.parametrize("name", ESTIMATES)
def test_zero_operator(name):
    zero = ESTIMATES[name](lambda v: 0 * v, jnp.ones(9), jax.random.key(0), num_matvecs=9)
    assert float(zero.value) == float(zero.standard_error) == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_diagonal_within_its_standard_error(make_problem, dense_hessian, loop):
    problem = make_problem("mlp")
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    result = curvature.diagonal(operator, problem.params, jax.random.key(0), num_matvecs=200, loop=loop)
    assert jax.tree.structure(result.value) == jax.tree.structure(problem.params)
    want = np.diag(dense_hessian(problem.loss_fn, problem.params, problem.batch))
    errors = (_flat(result.value) - want) / (_flat(result.standard_error) + 1e-7)
    assert np.abs(errors).max() < 5
    assert 0.6 < np.sqrt(np.mean(errors**2)) < 1.6


def test_same_key_same_bits_and_one_trace(make_problem):
    problem, other = make_problem("mlp"), make_problem("mlp", seed=1)
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    run = lambda p: curvature.trace(  # noqa: E731
        curvature.hessian(loss, p.params, p.batch), p.params, jax.random.key(3), num_matvecs=5, loop="host"
    )
    assert float(run(problem).value) == float(run(problem).value) != float(run(other).value)
    assert len(traces) == 1


def test_under_jit(matrix_operator):
    problem = matrix_operator(SPECTRUM)
    run = lambda key: curvature.trace(problem.matvec, problem.v0, key, num_matvecs=10).value  # noqa: E731
    np.testing.assert_allclose(jax.jit(run)(jax.random.key(0)), run(jax.random.key(0)), rtol=1e-4)


def test_nan_shows():
    result = curvature.trace(lambda v: v * jnp.nan, jnp.ones(9), jax.random.key(0), num_matvecs=4)
    assert np.isnan(float(result.value))
    assert np.isnan(float(result.standard_error))


def test_bad_input_is_refused():
    args = (lambda v: v, jnp.ones(9), jax.random.key(0))
    with pytest.raises(ValueError, match="`num_matvecs` must be at least 2, for a standard error, got 1"):
        curvature.trace(*args, num_matvecs=1)
    with pytest.raises(ValueError, match=r"`num_matvecs` must be a whole number of at least 0, got 6\.5"):
        curvature.trace(*args, num_matvecs=6.5)
    with pytest.raises(ValueError, match=r"Hutch\+\+ needs `num_matvecs` of at least 6, got 5"):
        curvature.trace(*args, num_matvecs=5, method="hutch++")
    with pytest.raises(ValueError, match='`method` must be "hutchinson" or "hutch\\+\\+", got \'exact\''):
        curvature.trace(*args, method="exact")
    with pytest.raises(ValueError, match="got int32 at the root"):
        curvature.diagonal(lambda v: v, jnp.ones(9, jnp.int32), jax.random.key(0))


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [400, 2])
def test_hutchpp_of_coarse_dtypes(rank):
    # A probe is no unit vector, and the sketch of few directions has rows of zeros.
    values = jnp.where(jnp.arange(400) < rank, 1.0 + jnp.arange(400) % 3, 0.0)
    exact = float(values.sum())

    def matvec(v):
        whole = jnp.concatenate([v["half"].astype(jnp.float32), v["single"]]) * values
        return {"half": whole[:300].astype(jnp.bfloat16), "single": whole[300:]}

    like = {"half": jnp.zeros(300, jnp.bfloat16), "single": jnp.zeros(100)}
    found = curvature.trace(matvec, like, jax.random.key(0), num_matvecs=60, method="hutch++")
    assert abs(float(found.value) - exact) < 4 * float(found.standard_error) + 0.01 * exact
    assert float(found.standard_error) < 0.1 * exact


def test_hutchpp_is_exact_for_few_params_on_explicit_axes(four_devices):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Explicit,))
    like = jax.device_put(np.zeros(8, np.float32), jax.NamedSharding(mesh, jax.P("model")))
    values = like + np.arange(8.0, dtype=np.float32)
    found = curvature.trace(lambda v: values * v, like, jax.random.key(0), num_matvecs=10, method="hutch++")
    assert (float(found.value), float(found.standard_error)) == (28.0, 0.0)
