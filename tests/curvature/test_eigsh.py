"""Eigenpairs against SciPy, dense matrices and known spectra; residuals against the operator itself."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.tree_util import Partial

from hessabs import curvature

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

LOOPS = ("host", "device")
SIZE = 120
SPECTRA = {
    "decaying": 0.8 ** np.arange(SIZE),
    "clustered": np.r_[3 + 1e-2 * np.arange(4), np.linspace(-2, 1, SIZE - 4)],
    "indefinite": np.linspace(-3, 2, SIZE) ** 3,
    "low rank": np.r_[7.0, 4.0, 2.0, -1.0, np.zeros(SIZE - 4)],
    "identity": np.ones(SIZE),
    "zero": np.zeros(SIZE),
}


WHICH = ("LA", "SA", "LM", "BE")
# The small end of what decays lies below the rounding of its large end.
CASES = [(n, w, "host") for n in SPECTRA for w in WHICH if not (n == "decaying" and w in ("SA", "BE"))]
CASES += zip(SPECTRA, ("LM", "SA", "BE", "LA", "BE", "SA"), ["device"] * len(SPECTRA), strict=True)


@pytest.mark.parametrize(("name", "which", "loop"), CASES)
def test_wanted_pairs_of_known_spectra(matrix_operator, name, which, loop):
    problem = matrix_operator(SPECTRA[name])
    result = curvature.eigsh(
        problem.matvec, problem.v0, 3, which=which, rtol=1e-4, max_matvecs=2000, num_vectors=30, loop=loop
    )
    want = _wanted(problem.eigenvalues, which, 3)
    norm = np.abs(problem.eigenvalues).max()
    assert result.converged.all()
    np.testing.assert_allclose(result.eigenvalues, want, atol=2e-4 * norm + 1e-12)
    _check_pairs(problem.matrix, result, norm)


@pytest.mark.parametrize("which", WHICH)
def test_agrees_with_scipy(x64, matrix_operator, which):
    problem = matrix_operator(SPECTRA["indefinite"], dtype=jnp.float64)
    result = curvature.eigsh(problem.matvec, problem.v0, 4, which=which, rtol=1e-9, max_matvecs=5000)
    want = scipy.sparse.linalg.eigsh(problem.matrix, 4, which=which, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(result.eigenvalues), np.sort(want), rtol=1e-9)


@pytest.mark.parametrize("network", ["mlp", "conv", "tied"])
def test_hessian_of_a_network(x64, make_problem, dense_hessian, network):
    problem = make_problem(network, jnp.float64)
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch, linearize=True)
    result = curvature.eigsh(operator, problem.params, 5, which="BE", rtol=1e-8, max_matvecs=1000)
    values = np.linalg.eigvalsh(dense_hessian(problem.loss_fn, problem.params, problem.batch))
    np.testing.assert_allclose(result.eigenvalues, _wanted(values, "BE", 5), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("loop", LOOPS)
def test_repeated_eigenvalues_with_a_block(matrix_operator, loop):
    values = np.r_[np.full(3, 2.0), np.linspace(-1, 1, 60)]
    problem = matrix_operator(values)
    starts = jax.tree.map(lambda x: jnp.stack([x, jnp.flip(x), x**2]), problem.v0)
    result = curvature.eigsh(problem.matvec, starts, 4, block_size=3, rtol=1e-4, loop=loop)
    assert result.converged.all()
    np.testing.assert_allclose(result.eigenvalues, [2, 2, 2, 1], atol=2e-4)
    _check_pairs(problem.matrix, result, 2.0)


def test_residuals_are_honest_before_convergence(matrix_operator):
    problem = matrix_operator(np.linspace(-5, 3, SIZE))
    for num_matvecs in (5, 12, 37, 60):  # without, and with, restarts
        result = curvature.eigsh(problem.matvec, problem.v0, 3, rtol=0, max_matvecs=num_matvecs, num_vectors=20)
        assert result.num_matvecs == num_matvecs
        _check_pairs(problem.matrix, result, 5.0)
    assert not result.converged.all()


@pytest.mark.parametrize(
    ("stop", "loop"), [(1, "host"), (10, "host"), (20, "host"), (30, "host"), (30, "device")]
)
def test_interrupted_run_goes_on_to_the_same_bits(matrix_operator, stop, loop):
    problem = matrix_operator(SPECTRA["indefinite"])
    options = {"which": "SA", "num_vectors": 20, "rtol": 1e-4, "loop": loop}
    whole = curvature.eigsh(problem.matvec, problem.v0, 3 if stop >= 3 else 1, max_matvecs=500, **options)
    k = len(whole.eigenvalues)
    part = curvature.eigsh(problem.matvec, problem.v0, k, max_matvecs=max(stop, k), keep_state=True, **options)
    assert part.num_matvecs == max(stop, k) < whole.num_matvecs
    saved = jax.tree.map(np.asarray, part.state)
    rest = curvature.eigsh(problem.matvec, problem.v0, k, max_matvecs=500, state=saved, **options)
    assert rest.num_matvecs == whole.num_matvecs
    np.testing.assert_array_equal(rest.eigenvalues, whole.eigenvalues)
    for a, b in zip(jax.tree.leaves(rest.eigenvectors), jax.tree.leaves(whole.eigenvectors), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_every_interruption_of_an_exhausted_space_goes_on_to_the_same_bits(loop):
    # Three distinct eigenvalues: the space is exhausted again and again, and each time one must look again.
    values = jnp.asarray(np.repeat([3.0, 2.0, 1.0], 20))
    v0 = jnp.asarray(np.r_[np.ones(20), np.zeros(40)])

    def run(max_matvecs, state=None):
        matvec = Partial(jnp.multiply, values)
        return curvature.eigsh(matvec, v0, 2, max_matvecs=max_matvecs, state=state, keep_state=True, loop=loop)

    whole = run(100)
    np.testing.assert_allclose(whole.eigenvalues, [3, 3], rtol=1e-5)
    for stop in range(2, whole.num_matvecs, 1 if loop == "host" else 5):
        saved = jax.tree.map(np.asarray, run(stop).state)
        rest = run(100, saved)
        assert rest.num_matvecs == whole.num_matvecs
        for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_basis_grows_with_what_is_asked_for_within_memory(monkeypatch):
    values = jnp.linspace(0, 1, 600)

    def rows(k):
        result = curvature.eigsh(lambda v: values * v, values, k, max_matvecs=k, keep_state=True)
        return result.state.basis.shape[0] - 1

    assert [rows(1), rows(20), rows(60)] == [110, 300, 600]
    monkeypatch.setattr(importlib.import_module("hessabs.curvature.eigsh"), "_BASIS_BYTES", 70 * 600 * 4)
    assert [rows(1), rows(20), rows(60)] == [70, 70, 140]


def test_warm_start_from_earlier_eigenvectors(matrix_operator):
    problem = matrix_operator(SPECTRA["decaying"])
    other = matrix_operator(SPECTRA["indefinite"], seed=7)

    def moved(vector):
        return jax.tree.map(lambda a, b: a + 1e-4 * b, problem.matvec(vector), other.matvec(vector))

    cold = curvature.eigsh(moved, problem.v0, 3, rtol=1e-3)
    first = curvature.eigsh(problem.matvec, problem.v0, 3, rtol=1e-4)
    warm = curvature.eigsh(moved, first.eigenvectors, 3, block_size=3, rtol=1e-3)
    assert warm.num_matvecs < cold.num_matvecs
    np.testing.assert_allclose(warm.eigenvalues, cold.eigenvalues, rtol=1e-5)


def test_start_at_an_eigenvector_of_another_eigenvalue():
    values = jnp.arange(1.0, 61.0)
    result = curvature.eigsh(lambda v: values * v, jnp.eye(60)[4], 1, rtol=1e-4)
    np.testing.assert_allclose(result.eigenvalues, [60.0], rtol=1e-4)


def test_bfloat16_vectors(make_problem, dense_hessian):
    problem = make_problem("mlp", jnp.bfloat16)
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    result = curvature.eigsh(operator, problem.params, 2, rtol=3e-2)
    assert {x.dtype for x in jax.tree.leaves(result.eigenvectors)} == {jnp.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), problem.params)
    values = np.linalg.eigvalsh(dense_hessian(problem.loss_fn, wide, problem.batch))
    np.testing.assert_allclose(result.eigenvalues, _wanted(values, "LA", 2), rtol=3e-2)


@pytest.mark.parametrize("loop", LOOPS)
def test_nan_ends_the_run_at_once(loop):
    calls = []

    def matvec(vector):
        jax.debug.callback(lambda: calls.append(1))
        return vector * jnp.nan

    result = curvature.eigsh(matvec, jnp.ones(50), 2, loop=loop)
    jax.effects_barrier()
    assert result.num_matvecs == len(calls) == 1
    assert np.isnan(result.eigenvalues).all()
    assert np.isnan(result.residuals).all()
    assert not result.converged.any()


def test_twice_the_same_bits(make_problem):
    problem = make_problem("mlp")
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    one, two = (curvature.eigsh(operator, problem.params, 3, rtol=1e-4) for _ in range(2))
    np.testing.assert_array_equal(one.eigenvalues, two.eigenvalues)
    np.testing.assert_array_equal(_rows(one.eigenvectors), _rows(two.eigenvectors))


@pytest.mark.slow
def test_data_set_operator(make_problem):
    problem = make_problem("mlp")
    halves = [jax.tree.map(lambda x, s=s: x[s], problem.batch) for s in (slice(0, 7), slice(7, 12))]
    whole = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    got = curvature.eigsh(curvature.dataset_hessian(problem.loss_fn, problem.params, halves), problem.params, 3)
    want = curvature.eigsh(whole, problem.params, 3)
    np.testing.assert_allclose(got.eigenvalues, want.eigenvalues, rtol=1e-4)


def test_bad_input_is_refused(matrix_operator):
    problem = matrix_operator([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])

    def run(*args, **options):
        return curvature.eigsh(problem.matvec, problem.v0, *args, **options)

    with pytest.raises(ValueError, match=r"`k` must lie in \[1, 6\], the dimension of the operator, got 7"):
        run(7)
    with pytest.raises(ValueError, match=r"`k` must be a whole number of at least 1, got 2\.5"):
        run(2.5)
    with pytest.raises(ValueError, match='`which` must be "LA", "SA", "LM" or "BE", got \'SM\''):
        run(1, which="SM")
    with pytest.raises(ValueError, match="`rtol` must be at least 0, got nan"):
        run(1, rtol=float("nan"))
    with pytest.raises(ValueError, match="`max_matvecs` must be at least k=2, got 1"):
        run(2, max_matvecs=1)
    with pytest.raises(ValueError, match=r"`num_vectors` must lie in \[4, 6\] for k=2, got 3"):
        run(2, num_vectors=3)
    with pytest.raises(ValueError, match="every leaf of `v0` needs a leading axis of that size"):
        run(1, block_size=2)
    saved = run(1, num_vectors=5, max_matvecs=2, keep_state=True).state
    with pytest.raises(
        ValueError, match=r"`state` has a basis of shape \(6, 6\), but this call needs \(7, 6\)"
    ):
        run(1, num_vectors=6, state=saved)
    with pytest.raises(ValueError, match="cannot be traced"):
        jax.jit(lambda v: curvature.eigsh(problem.matvec, v, 1).eigenvalues)(problem.v0)
    with pytest.raises(ValueError, match=r"got int32 at \['a'\]"):
        curvature.eigsh(problem.matvec, {**problem.v0, "a": jnp.zeros((1, 2), jnp.int32)}, 1)
    with pytest.raises(ValueError, match=r"`matvec\(v0\)` must have the structure of `v0`, but at \['b'\]"):
        curvature.eigsh(lambda v: {"a": v["a"]}, problem.v0, 1)


def _wanted(values, which, k):
    values = np.sort(values)[::-1]
    if which == "SA":
        return values[::-1][:k]
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")][:k]
    if which == "BE":
        return np.r_[values[: k - k // 2], values[len(values) - k // 2 :]]
    return values[:k]


def _check_pairs(matrix, result, norm):
    vectors = _rows(result.eigenvectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=3e-6)
    true = np.linalg.norm(matrix @ vectors.T - vectors.T * result.eigenvalues, axis=0)
    size = np.abs(result.eigenvalues)
    reported = result.residuals * np.where(size > 0, size, 1)
    np.testing.assert_allclose(reported, true, atol=1e-6 * norm + 1e-12)


def _rows(tree):
    return np.concatenate(
        [np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(tree)], axis=1
    )
