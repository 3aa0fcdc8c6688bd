"""Deflated power iteration against known spectra and against eigsh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize("loop", ["host", "device"])
@pytest.mark.parametrize("plain", [False, True])
def test_pairs_in_order_of_magnitude(matrix_operator, loop, plain):
    problem = matrix_operator([-8.0, 5.0, 3.0, -1.5, 0.5, 0.1, 0.0])
    starts = jax.tree.map(lambda x: jnp.stack([x, -x, x + 1, 2 * x - 1]), problem.v0)
    matvec = (lambda v: problem.matvec(v)) if plain else problem.matvec
    result = curvature.deflated_power_iteration(matvec, starts, max_iters=200, rtol=1e-4, loop=loop)
    np.testing.assert_allclose(result.eigenvalue, [-8, 5, 3, -1.5], rtol=1e-3)
    assert bool(result.converged.all())
    vectors = np.concatenate(
        [np.asarray(x).reshape(4, -1) for x in jax.tree.leaves(result.eigenvector)], axis=1
    )
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-3)


@pytest.mark.slow
def test_agrees_with_eigsh_and_traces_once(make_problem):
    problem = make_problem("mlp")
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    starts = jax.tree.map(lambda x: jnp.stack([x, x**2]), problem.params)
    operator = curvature.hessian(loss, problem.params, problem.batch)
    result = curvature.deflated_power_iteration(operator, starts, max_iters=100, rtol=1e-2, loop="host")
    assert len(traces) == 1
    want = curvature.eigsh(operator, problem.params, 2, which="LM", rtol=1e-5)
    np.testing.assert_allclose(result.eigenvalue, want.eigenvalues, rtol=1e-3)
    again = curvature.deflated_power_iteration(operator, result.eigenvector, rtol=2e-2)
    np.testing.assert_array_equal(again.num_iters, 1)


def test_more_vectors_than_rank_and_under_jit(matrix_operator):
    problem = matrix_operator([2.0, 1.0, 0.0, 0.0, 0.0])
    starts = jax.tree.map(lambda x: jnp.stack([x] * 3), problem.v0)

    @jax.jit
    def top(scale):
        matvec = lambda v: jax.tree.map(lambda x: scale * x, problem.matvec(v))  # noqa: E731
        return curvature.deflated_power_iteration(matvec, starts, max_iters=60).eigenvalue

    np.testing.assert_allclose(top(3.0), [6, 3, 0], atol=1e-2)
