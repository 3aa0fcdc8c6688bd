"""Layer tables, batch spectra and the debiased eigenvalue against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature, trees


@pytest.mark.parametrize("linearize", [False, True])
def test_layer_table_describes_the_dense_blocks(make_problem, dense_hessian, linearize):
    problem = make_problem("conv")
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
    table = curvature.layer_table(operator, problem.params, jax.random.key(0), rtol=1e-4, num_probes=100)
    assert [row.layer for row in table] == ["conv", "head"]
    for row in table:
        chosen, frozen = trees.partition(problem.params, row.layer)
        loss = lambda p, b, frozen=frozen: problem.loss_fn(trees.combine(p, frozen), b)  # noqa: E731
        matrix = dense_hessian(loss, chosen, problem.batch)
        values = np.linalg.eigvalsh(matrix)
        assert row.num_params == len(matrix)
        assert row.converged
        np.testing.assert_allclose([row.smallest, row.largest], values[[0, -1]], atol=1e-4 * values[-1])
        assert abs(float(row.trace.value) - np.trace(matrix)) < 4 * float(row.trace.standard_error)
        error = abs(float(row.frobenius_norm.value) - np.linalg.norm(matrix))
        assert error < 4 * float(row.frobenius_norm.standard_error)


def test_batch_spectra_are_those_of_each_batch(make_problem, dense_hessian):
    problem = make_problem("mlp", num_examples=14)
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 4], problem.batch) for i in (0, 4, 8)]
    batches.append(jax.tree.map(lambda x: x[12:], problem.batch))
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    spectra = curvature.batch_spectra(loss, problem.params, iter(batches), problem.params, 3, rtol=1e-4)
    assert len(traces) == 2  # one for each shape
    assert spectra.converged.all()
    np.testing.assert_array_equal(spectra.weights, [4, 4, 4, 2])
    for values, batch in zip(spectra.eigenvalues, batches, strict=True):
        want = np.linalg.eigvalsh(dense_hessian(problem.loss_fn, problem.params, batch))[::-1][:3]
        np.testing.assert_allclose(values, want, rtol=1e-3)
    with pytest.raises(ValueError, match="The data set is empty"):
        curvature.batch_spectra(loss, problem.params, [], problem.params)


def test_two_batches_remove_the_upward_bias():
    # Gaussian inputs of a linear model: the true Hessian is 2 I; a small batch has a larger top eigenvalue.
    def loss(w, x):
        return jnp.mean((x @ w) ** 2)

    biased, debiased = [], []
    for i in range(40):
        a, b = jax.random.normal(jax.random.key(i), (2, 20, 10))
        result = curvature.debiased_eigenvalue(loss, jnp.zeros(10), a, b, jnp.ones(10), max_iters=50)
        across = 2 * np.mean((np.asarray(b) @ np.asarray(result.eigenvector)) ** 2)
        np.testing.assert_allclose(result.eigenvalue, across, rtol=1e-4)
        biased.append(float(result.biased))
        debiased.append(float(result.eigenvalue))
    assert np.mean(biased) > 3.5
    assert abs(np.mean(debiased) - 2) < 4 * np.std(debiased) / np.sqrt(40)
