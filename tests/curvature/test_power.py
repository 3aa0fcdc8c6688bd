"""Power iteration on matrices with known spectra, on every kind of loop and of operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessabs

pytestmark = pytest.mark.sampled

LOOPS = ("host", "device")
SPECTRA = {
    "decaying": 2.0 ** -np.arange(12),
    "indefinite": np.array([-4.0, 3.0, 1.0, 0.5, -0.2, 0.0]),
    "repeated": np.array([2.0, 2.0, 2.0, 0.5, 0.1, 0.0]),
    "low rank": np.array([5.0, 1.0] + [0.0] * 10),
    "identity": np.ones(9),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", SPECTRA)
def test_finds_the_eigenvalue_of_largest_magnitude(matrix_operator, name, loop):
    problem = matrix_operator(SPECTRA[name])
    result = hessabs.power_iteration(problem.matvec, problem.v0, max_iters=200, rtol=1e-4, loop=loop)
    want = problem.eigenvalues[np.argmax(np.abs(problem.eigenvalues))]
    assert bool(result.converged)
    np.testing.assert_allclose(result.eigenvalue, want, rtol=1e-4)
    vector = _flat(result.eigenvector)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-6)
    true_residual = np.linalg.norm(problem.matrix @ vector - float(result.eigenvalue) * vector) / abs(want)
    np.testing.assert_allclose(result.residual, true_residual, atol=1e-6)


@pytest.mark.parametrize("loop", LOOPS)
def test_converged_is_the_truth(matrix_operator, loop):
    problem = matrix_operator([1.0, 0.999, 0.1])
    result = hessabs.power_iteration(problem.matvec, problem.v0, max_iters=3, rtol=1e-6, loop=loop)
    assert not bool(result.converged)
    assert int(result.num_iters) == 3
    assert float(result.residual) > 1e-6


def test_warm_start_takes_one_product(matrix_operator):
    problem = matrix_operator(SPECTRA["decaying"])
    first = hessabs.power_iteration(problem.matvec, problem.v0, max_iters=100, rtol=1e-4)
    again = hessabs.power_iteration(problem.matvec, first.eigenvector, max_iters=100, rtol=1e-3)
    assert int(first.num_iters) > 3
    assert int(again.num_iters) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_zero_operator_and_zero_vector(matrix_operator, loop):
    zero = hessabs.power_iteration(lambda v: jax.tree.map(jnp.zeros_like, v), {"w": jnp.ones(3)}, loop=loop)
    assert float(zero.eigenvalue) == 0
    assert float(zero.residual) == 0
    assert zero.converged
    assert np.isfinite(_flat(zero.eigenvector)).all()
    problem = matrix_operator([1.0, 2.0, 3.0])
    start = jax.tree.map(jnp.zeros_like, problem.v0)
    result = hessabs.power_iteration(problem.matvec, start, loop=loop)
    assert float(result.eigenvalue) == 0
    np.testing.assert_array_equal(_flat(result.eigenvector), 0)
    assert not result.converged


@pytest.mark.parametrize("loop", LOOPS)
def test_nan_ends_the_loop_at_once_and_shows(loop):
    result = hessabs.power_iteration(lambda v: v * jnp.nan, jnp.ones(3), max_iters=50, loop=loop)
    assert int(result.num_iters) == 1
    assert np.isnan(float(result.eigenvalue))
    assert not bool(result.converged)


@pytest.mark.parametrize("loop", LOOPS)
def test_bfloat16_vectors_keep_their_dtype(matrix_operator, loop):
    problem = matrix_operator([8.0, 1.0, 0.5, 0.1], dtype=jnp.bfloat16)
    result = hessabs.power_iteration(problem.matvec, problem.v0, rtol=3e-2, loop=loop)
    assert {x.dtype for x in jax.tree.leaves(result.eigenvector)} == {jnp.dtype(jnp.bfloat16)}
    assert result.eigenvalue.dtype == jnp.float32
    np.testing.assert_allclose(result.eigenvalue, 8.0, rtol=3e-2)


@pytest.mark.parametrize("loop", LOOPS)
def test_operator_is_traced_once_for_all_params(make_problem, loop):
    problem, other = make_problem("mlp"), make_problem("mlp", seed=1)
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    for p in (problem, other):
        operator = hessabs.hessian(loss, p.params, p.batch)
        result = hessabs.power_iteration(operator, p.params, max_iters=100, rtol=1e-3, loop=loop)
        assert bool(result.converged)
    counted = len(traces)
    hessabs.power_iteration(operator, other.params, max_iters=5, rtol=1e-1, loop=loop)
    assert len(traces) == counted
    assert counted <= 2  # `lax.while_loop` traces its body once more to find weak types


def test_matches_the_dense_hessian(x64, make_problem, dense_hessian):
    problem = make_problem("mlp", jnp.float64)
    operator = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=True)
    result = hessabs.power_iteration(operator, problem.params, max_iters=500, rtol=1e-6)
    values = np.linalg.eigvalsh(dense_hessian(problem.loss_fn, problem.params, problem.batch))
    np.testing.assert_allclose(result.eigenvalue, values[np.argmax(np.abs(values))], rtol=1e-9)


def test_under_jit_and_vmap(matrix_operator):
    problem = matrix_operator(SPECTRA["decaying"])
    scales = jnp.array([1.0, -2.0, 0.0])

    def top(scale):
        def scaled(vector):
            return jax.tree.map(lambda x: scale * x, problem.matvec(vector))

        return hessabs.power_iteration(scaled, problem.v0, max_iters=60, rtol=1e-4).eigenvalue

    np.testing.assert_allclose(jax.jit(jax.vmap(top))(scales), scales, rtol=1e-4)


def test_closure_over_somebody_elses_tracer_needs_no_traced_vector(matrix_operator):
    problem = matrix_operator(SPECTRA["decaying"])

    @jax.jit
    def top(scale):  # v0 is concrete, and no argument shows the tracer
        return hessabs.power_iteration(
            lambda v: jax.tree.map(lambda x: scale * x, problem.matvec(v)), problem.v0, max_iters=60, rtol=1e-4
        ).eigenvalue

    np.testing.assert_allclose(top(3.0), 3.0, rtol=1e-4)


@pytest.mark.slow
def test_under_a_mapped_axis(make_problem, four_devices):
    problem = make_problem("mlp")
    split = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), problem.batch)

    def top(batch):
        operator = hessabs.hessian(problem.loss_fn, problem.params, batch, axis_name="shards")
        return hessabs.power_iteration(operator, problem.params, max_iters=100, rtol=1e-3).eigenvalue

    got = jax.pmap(top, axis_name="shards")(split)
    whole = hessabs.hessian(problem.loss_fn, problem.params, problem.batch)
    want = hessabs.power_iteration(whole, problem.params, max_iters=100, rtol=1e-3).eigenvalue
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_bad_arguments_are_refused(matrix_operator):
    problem = matrix_operator([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="`max_iters` must be a whole number of at least 1, got 0"):
        hessabs.power_iteration(problem.matvec, problem.v0, max_iters=0)
    with pytest.raises(ValueError, match="`rtol` must be at least 0, got nan"):
        hessabs.power_iteration(problem.matvec, problem.v0, rtol=float("nan"))
    with pytest.raises(ValueError, match='`loop` must be "host", "device" or None, got \'gpu\''):
        hessabs.power_iteration(problem.matvec, problem.v0, loop="gpu")
    with pytest.raises(ValueError, match="under a trace"):
        jax.jit(lambda v: hessabs.power_iteration(problem.matvec, v, loop="host").eigenvalue)(problem.v0)
    with pytest.raises(ValueError, match=r"`matvec\(v0\)` must have the structure of `v0`"):
        hessabs.power_iteration(lambda v: v["a"], problem.v0)


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)
