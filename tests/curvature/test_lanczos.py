"""The Lanczos process against its own identity and against known spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature
from hessabs.curvature import basis, krylov

pytestmark = pytest.mark.sampled

LOOPS = ("host", "device")
SPECTRA = {
    "decaying": 2.0 ** -np.arange(30),
    "clustered": np.r_[np.full(10, 1.0) + 1e-3 * np.arange(10), np.linspace(-1, 0.5, 20)],
    "indefinite": np.linspace(-3, 2, 30),
    "repeated": np.r_[np.full(10, 4.0), np.full(10, 1.0), np.full(10, -1.0)],
    "low rank": np.r_[5.0, 1.0, -2.0, np.zeros(27)],
    "identity": np.ones(30),
    "zero": np.zeros(30),
}


@pytest.mark.parametrize(("num_iters", "loop"), [(1, "host"), (12, "host"), (30, "host"), (12, "device")])
@pytest.mark.parametrize("name", SPECTRA)
def test_identity_and_orthonormal_basis(matrix_operator, name, loop, num_iters):
    problem = matrix_operator(SPECTRA[name])
    result = curvature.lanczos(problem.matvec, problem.v0, num_iters, loop=loop)
    basis, remainder = _rows(result.basis), _rows(jax.tree.map(lambda x: x[None], result.remainder))[0]
    tridiagonal = np.diag(result.diagonal).astype(float)
    tridiagonal += np.diag(result.off_diagonal, 1) + np.diag(result.off_diagonal, -1)
    last = np.eye(num_iters)[-1]
    norm = max(np.abs(problem.eigenvalues).max(), 1)
    # Rows that an exhausted space leaves zero satisfy the identity too.
    error = problem.matrix @ basis.T - basis.T @ tridiagonal - np.outer(remainder, last)
    assert np.abs(error).max() < 3e-6 * norm
    built = np.linalg.norm(basis, axis=1) > 0.5
    np.testing.assert_allclose(basis @ basis.T, np.diag(built.astype(float)), atol=2e-6)
    assert bool(result.finite)


def test_all_eigenvalues_of_a_small_matrix(x64, matrix_operator):
    problem = matrix_operator(SPECTRA["indefinite"], dtype=jnp.float64)
    result = curvature.lanczos(problem.matvec, problem.v0, 30, loop="host")
    tridiagonal = np.diag(result.diagonal) + np.diag(result.off_diagonal, 1) + np.diag(result.off_diagonal, -1)
    np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal), problem.eigenvalues, atol=1e-12)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("name", "dimension"), [("repeated", 3), ("low rank", 4), ("identity", 1), ("zero", 1)]
)
def test_an_exhausted_space_ends_the_process(x64, matrix_operator, name, dimension, loop):
    problem = matrix_operator(SPECTRA[name], dtype=jnp.float64)
    result = curvature.lanczos(problem.matvec, problem.v0, 20, loop=loop)
    assert int(result.num_iters) == dimension
    np.testing.assert_array_equal(_rows(result.basis)[dimension:], 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_zero_vector_and_nan(matrix_operator, loop):
    problem = matrix_operator(SPECTRA["decaying"])
    zero = curvature.lanczos(problem.matvec, jax.tree.map(jnp.zeros_like, problem.v0), 5, loop=loop)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(zero))
    assert int(zero.num_iters) == 0
    bad = curvature.lanczos(lambda v: jax.tree.map(lambda x: x * jnp.nan, v), problem.v0, 5, loop=loop)
    assert int(bad.num_iters) == 1
    assert not bool(bad.finite)


def test_under_vmap_and_jit(matrix_operator):
    problem = matrix_operator(SPECTRA["decaying"])
    run = jax.jit(jax.vmap(lambda v: curvature.lanczos(problem.matvec, v, 8).diagonal))
    starts = jax.tree.map(lambda x: jnp.stack([x, x[::-1], 2 * x]), problem.v0)
    got = run(starts)
    for i in range(3):
        one = curvature.lanczos(problem.matvec, jax.tree.map(lambda x, i=i: x[i], starts), 8, loop="host")
        np.testing.assert_allclose(got[i], one.diagonal, atol=2e-5)


def test_operator_is_traced_once(make_problem):
    problem, other = make_problem("mlp"), make_problem("mlp", seed=1)
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    for p, steps in ((problem, 5), (other, 9)):
        curvature.lanczos(curvature.hessian(loss, p.params, p.batch), p.params, steps, loop="host")
    assert len(traces) == 1


def test_number_of_products_must_fit(matrix_operator):
    problem = matrix_operator([1.0, 2.0, 3.0])
    with pytest.raises(
        ValueError, match=r"`num_iters` must lie in \[1, 3\], the dimension of the operator, got 4"
    ):
        curvature.lanczos(problem.matvec, problem.v0, 4)
    with pytest.raises(ValueError, match=r"`num_iters` must be a whole number of at least 1, got 2\.5"):
        curvature.lanczos(problem.matvec, problem.v0, 2.5)


@pytest.mark.parametrize("loop", ["host", "device"])
def test_rows_that_are_not_built_are_not_read(matrix_operator, loop):
    problem = matrix_operator(np.linspace(-2, 3, 60))
    form = basis.layout(problem.v0, loop == "host")
    row = basis.to_row(problem.v0, form)
    xp = np if loop == "host" else jnp
    whole = krylov.expand(problem.matvec, form, krylov.start(row, 40, [row]), 20, loop)
    state = krylov.start(row, 40, [row])
    unread = xp.arange(40)[:, None] >= (1 if loop == "host" else 32)  # a device reads rows by sixteen
    poisoned = state._replace(basis=xp.where(unread, xp.nan, state.basis).astype(state.basis.dtype))
    got = krylov.expand(problem.matvec, form, poisoned, 20, loop)
    np.testing.assert_array_equal(got.projected, whole.projected)
    np.testing.assert_array_equal(got.basis[:20], whole.basis[:20])


def _rows(tree):
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_products_whose_squares_overflow_are_not_finite(loop):
    values = jnp.arange(1.0, 31.0)
    large = curvature.lanczos(lambda v: 1e17 * values * v, jnp.ones(30), 5, loop=loop)
    assert (int(large.num_iters), bool(large.finite)) == (5, True)
    assert not curvature.lanczos(lambda v: 1e20 * values * v, jnp.ones(30), 5, loop=loop).finite
