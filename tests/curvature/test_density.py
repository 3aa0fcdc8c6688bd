"""Spectral densities against the eigenvalues they estimate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature

pytestmark = pytest.mark.sampled

SPECTRUM = np.r_[np.zeros(60), np.linspace(-1, 1, 30), np.full(8, 5.0), 9.0, 10.0]


@pytest.mark.parametrize("loop", ["host", "device"])
def test_moments_and_density_lie_within_their_standard_errors(matrix_operator, loop):
    problem = matrix_operator(SPECTRUM)
    density = curvature.spectral_density(
        problem.matvec, problem.v0, jax.random.key(0), num_probes=20, num_iters=50, loop=loop
    )
    np.testing.assert_allclose(density.weights.sum(1), 1, rtol=1e-9)
    for power in (1, 2, 3):
        moments = (density.weights * density.nodes**power).sum(1)
        error = moments.std(ddof=1) / np.sqrt(20)
        assert abs(moments.mean() - np.mean(SPECTRUM**power)) < 4 * error
    grid = np.linspace(-3, 12, 400)
    curve, error = curvature.evaluate_density(density, grid, width=0.3)
    exact = np.exp(-((grid[:, None] - SPECTRUM) ** 2) / (2 * 0.3**2)).mean(1) / (0.3 * np.sqrt(2 * np.pi))
    assert np.abs(curve - exact).max() < 0.1 * exact.max()
    assert np.mean(np.abs(curve - exact) < 3 * error + 1e-4) > 0.95
    np.testing.assert_allclose(np.sum(curve) * (grid[1] - grid[0]), 1, rtol=1e-3)


def test_all_products_give_the_exact_nodes(x64, matrix_operator):
    problem = matrix_operator(np.arange(1.0, 13.0), dtype=jnp.float64)
    density = curvature.spectral_density(
        problem.matvec, problem.v0, jax.random.key(0), num_probes=2, num_iters=12
    )
    np.testing.assert_allclose(density.nodes, [problem.eigenvalues] * 2, rtol=1e-9)
    assert density.num_matvecs == 24


def test_drawing_again_costs_no_product(matrix_operator):
    problem = matrix_operator(SPECTRUM)
    calls = []

    def matvec(vector):
        calls.append(1)
        return problem.matvec(vector)

    density = curvature.spectral_density(
        matvec, problem.v0, jax.random.key(0), num_probes=2, num_iters=10, loop="host"
    )
    assert len(calls) == density.num_matvecs == 20
    rebuilt = (
        np.diag(density.diagonal[0])
        + np.diag(density.off_diagonal[0], 1)
        + np.diag(density.off_diagonal[0], -1)
    )
    np.testing.assert_allclose(np.linalg.eigvalsh(rebuilt), density.nodes[0], atol=1e-9)
    narrow, wide = (curvature.evaluate_density(density, np.linspace(-2, 11, 50), w)[0] for w in (0.1, 2.0))
    assert narrow.max() > 2 * wide.max()
    assert len(calls) == 20


def test_exhausted_space_and_zero_operator():
    density = curvature.spectral_density(
        lambda v: 0 * v, jnp.ones(9), jax.random.key(0), num_probes=2, num_iters=5
    )
    np.testing.assert_array_equal(density.nodes, 0)
    np.testing.assert_allclose(density.weights.sum(1), 1)


def test_nan_shows_in_its_probe():
    density = curvature.spectral_density(
        lambda v: v * jnp.nan, jnp.ones(9), jax.random.key(0), num_probes=1, num_iters=5
    )
    assert density.num_matvecs == 1
    assert np.isnan(density.nodes).all()


def test_one_probe_has_no_standard_error(matrix_operator):
    problem = matrix_operator(SPECTRUM)
    density = curvature.spectral_density(
        problem.matvec, problem.v0, jax.random.key(0), num_probes=1, num_iters=5
    )
    assert np.isnan(curvature.evaluate_density(density, np.zeros(3), 1.0)[1]).all()


def test_bad_input_is_refused(matrix_operator):
    problem = matrix_operator([1.0, 2.0, 3.0])
    args = (problem.matvec, problem.v0, jax.random.key(0))
    with pytest.raises(ValueError, match="`num_probes` must be a whole number of at least 1, got 0"):
        curvature.spectral_density(*args, num_probes=0)
    with pytest.raises(ValueError, match=r"`num_iters` must lie in \[1, 3\]"):
        curvature.spectral_density(*args, num_iters=4)
    density = curvature.spectral_density(*args, num_probes=1, num_iters=2)
    with pytest.raises(ValueError, match=r"`width` must be positive, got 0\.0"):
        curvature.evaluate_density(density, np.zeros(1), 0.0)
