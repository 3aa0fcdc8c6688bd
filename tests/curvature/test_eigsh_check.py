"""What eigsh may not miss, what it costs to know that, and states that are of another operator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from hessabs import curvature

pytestmark = pytest.mark.sampled

# Two members of a cluster differ by less than what is asked for: one start vector sees one vector of both.
CLUSTER = np.r_[
    np.linspace(0, 0.99, 290), 1, 1.0058, 1.00589219, 1.00589283, 1.00589290, 1.02, 1.03, 1.04
]  # fmt: skip
BULK = np.linspace(-1, 1, 2000)


def _scale(diagonal, vector):
    return diagonal * vector


def _solve(diagonal, k, seed=0, v0=None, **options):
    diagonal = jnp.asarray(diagonal)
    if v0 is None:
        v0 = jnp.asarray(np.random.default_rng(seed).normal(size=diagonal.size), diagonal.dtype)
    return curvature.eigsh(Partial(_scale, diagonal), v0, k, **options)


def _wanted(diagonal, which, k):
    values = np.sort(diagonal)[::-1]
    if which == "LM":
        return values[np.argsort(-np.abs(values), kind="stable")][:k]
    if which == "BE":
        return np.r_[values[: k - k // 2], values[len(values) - k // 2 :]]
    return values[:k] if which == "LA" else values[::-1][:k]


@pytest.mark.parametrize("seed", range(6))
def test_no_member_of_a_cluster_is_missed(x64, seed):
    result = _solve(CLUSTER, 8, seed, rtol=1e-6)
    assert result.converged.all()
    np.testing.assert_allclose(result.eigenvalues, _wanted(CLUSTER, "LA", 8), rtol=1e-9)


@pytest.mark.parametrize(
    ("which", "k", "loop"), [("SA", 8, "host"), ("LM", 8, "host"), ("BE", 16, "host"), ("BE", 16, "device")]
)
def test_no_member_of_a_cluster_is_missed_at_either_end(x64, which, k, loop):
    diagonal = {"SA": -CLUSTER, "LM": -CLUSTER, "BE": np.r_[CLUSTER, -CLUSTER]}[which]
    for seed in range(2 if loop == "host" else 1):
        result = _solve(diagonal, k, seed, which=which, rtol=1e-6, loop=loop)
        assert result.converged.all()
        np.testing.assert_allclose(result.eigenvalues, _wanted(diagonal, which, k), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "k", "loop"),
    [("LA", 4, "host"), ("SA", 4, "host"), ("LM", 7, "host"), ("BE", 8, "host"), ("LM", 7, "device")],
)
def test_repeated_eigenvalues_from_one_vector(x64, which, k, loop):
    diagonal = np.r_[[2.0] * 3, [-2.0] * 3, np.linspace(-1, 1, 60)]
    result = _solve(diagonal, k, which=which, rtol=1e-7, loop=loop)
    assert result.converged.all()
    found, want = np.sort(np.abs(result.eigenvalues)), np.sort(np.abs(_wanted(diagonal, which, k)))
    np.testing.assert_allclose(found, want, rtol=1e-12)
    rows = np.asarray(result.eigenvectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(k), atol=1e-12)
    residuals = np.linalg.norm(rows * diagonal - result.eigenvalues[:, None] * rows, axis=1)
    np.testing.assert_allclose(result.residuals * np.abs(result.eigenvalues), residuals, atol=1e-12)


def test_the_smallest_basis_takes_in_what_checks_find(x64):
    diagonal = np.r_[[2.0] * 5, np.linspace(-1, 1, 37)]
    result = _solve(diagonal, 5, num_vectors=7, rtol=1e-6, max_matvecs=1000, keep_state=True)
    np.testing.assert_allclose(result.eigenvalues, [2] * 5, rtol=1e-9)
    assert result.converged.all()
    assert len(result.state.basis) <= 7 + 5 + 12


@pytest.mark.parametrize(
    ("diagonal", "k", "most", "warm"),
    [
        (np.r_[BULK, 10], 1, 12, 8),
        (np.r_[BULK, 6, 8, 10], 3, 18, 9),
        (np.r_[BULK, np.arange(2, 12)], 10, 36, 18),
    ],
    ids=["one", "three", "ten"],
)
def test_a_check_costs_half_as_much_again_at_the_most(diagonal, k, most, warm):
    first = _solve(np.float32(diagonal), k)
    assert first.converged.all()
    assert first.num_matvecs <= most
    vectors = first.eigenvectors if k > 1 else first.eigenvectors[0]
    again = _solve(np.float32(diagonal) * 1.001, k, v0=vectors, block_size=k)
    assert again.converged.all()
    assert again.num_matvecs <= warm


def test_pairs_are_not_believed_before_the_check_is_done():
    diagonal = np.float32(np.r_[BULK, 6, 8, 10])
    whole = _solve(diagonal, 3)
    part = _solve(diagonal, 3, max_matvecs=whole.num_matvecs - 1)
    assert (part.residuals <= 1e-3).all()
    assert not part.converged.any()


def test_a_warm_start_finds_an_eigenvalue_that_was_not_there(x64):
    old = jnp.eye(200)[jnp.array([199, 198, 197])]
    result = _solve(np.r_[5.0, np.linspace(0, 1, 199)], 3, v0=old, block_size=3)
    np.testing.assert_allclose(result.eigenvalues, [5, 1, 197 / 198], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(  # before a restart, after restarts, converged
    ("loop", "stop"), [("host", 7), ("host", 60), ("host", None), ("device", 60)]
)
def test_the_state_of_another_operator_is_refused(loop, stop):
    diagonal, v0 = jnp.arange(50.0), jnp.ones(50)
    options = {"k": 1, "num_vectors": 10, "rtol": 1e-6, "loop": loop}
    first = _solve(diagonal, v0=v0, max_matvecs=stop, keep_state=True, **options)
    for other in (10 * diagonal, 1.01 * diagonal, diagonal[::-1]):
        with pytest.raises(ValueError, match="`state` is of another operator: a product differs"):
            _solve(other, v0=v0, state=first.state, **options)
    if loop == "device":
        return  # it compiles each loop over a plain function
    calls = []

    def counted(vector):
        calls.append(1)
        return diagonal * vector

    rest = curvature.eigsh(counted, v0, state=first.state, **options)
    assert len(calls) == rest.num_matvecs - first.num_matvecs + 1
    np.testing.assert_allclose(rest.eigenvalues, [49], rtol=1e-5)


def test_a_result_holds_its_basis_only_if_asked_to():
    diagonal = jnp.arange(50.0)
    assert _solve(diagonal, 1).state is None
    result = _solve(diagonal, 1, keep_state=True)
    assert result.state.basis.shape == (51, 50)
    again = _solve(diagonal, 1, state=result.state)
    np.testing.assert_array_equal(again.eigenvectors, result.eigenvectors)
    assert again.num_matvecs == result.num_matvecs


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["host", "device"])
def test_states_can_be_saved_on_the_way(loop):
    diagonal, saved = jnp.r_[jnp.linspace(-1, 1, 49), 10], []
    whole = _solve(diagonal, 1, loop=loop)
    watched = _solve(diagonal, 1, loop=loop, save=lambda state: saved.append(jax.tree.map(np.array, state)))
    assert [int(state.num_matvecs) for state in saved] == [*range(1, whole.num_matvecs + 1)]
    rest = _solve(diagonal, 1, loop=loop, state=saved[4])
    for result in (watched, rest):
        np.testing.assert_array_equal(result.eigenvalues, whole.eigenvalues)
        assert result.num_matvecs == whole.num_matvecs


def test_a_check_in_a_small_basis_has_room_to_see():
    # With four rows it passed three of these with an eigenvalue missed.
    for seed in range(12):
        values = np.random.default_rng(seed).normal(size=120)
        options = {"which": "LM", "rtol": 1e-2, "num_vectors": 8, "max_matvecs": 999}
        result = _solve(jnp.asarray(values, jnp.float32), 5, seed, **options)
        assert result.converged.all()
        np.testing.assert_allclose(np.abs(result.eigenvalues), np.abs(_wanted(values, "LM", 5)), rtol=0.015)


@pytest.mark.parametrize("size", [3, 700])
@pytest.mark.parametrize("solve", ["eigsh", "power_iteration"])
def test_half_precision_is_certified_for_no_more_than_it_is(solve, size):
    ones = jnp.ones(size, jnp.bfloat16)
    operator = curvature.hessian(lambda w, _: 3.5 * jnp.sum(w.astype(jnp.float32) ** 2), ones, None)  # 7 times
    if solve == "eigsh":
        result = curvature.eigsh(operator, ones, rtol=1e-3)
        value, residual, converged = result.eigenvalues[0], result.residuals[0], result.converged[0]
    else:
        result = curvature.power_iteration(operator, ones, rtol=1e-3)
        value, residual, converged = float(result.eigenvalue), float(result.residual), result.converged
    assert converged
    assert abs(value - 7) <= residual * value
    assert 0.0039 < residual < 0.0079
