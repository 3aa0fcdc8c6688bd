"""The experiment on robust least squares: both sides are equal, and each is what it is said to be."""

import numpy as np
import pytest

from experiments.robust_least_squares import run as robust

KINDS = ("frobenius", "columns")


def sizes(matrix):
    """The Frobenius norm, and the largest norm of a column."""
    return {"frobenius": np.linalg.norm(matrix), "columns": np.linalg.norm(matrix, axis=0).max()}


@pytest.mark.parametrize("kind", KINDS)
def test_ascent_finds_the_worst_perturbation(kind):
    problem, rng = robust.make_problem(3), np.random.default_rng(0)
    x = rng.normal(size=4)
    found = robust.worst(problem, x, kind)
    assert sizes(found)[kind] <= problem.rho * (1 + 1e-12)
    value = robust.robust_value(problem, x, found)
    # The closed form of the inner maximum, which the code does not use.
    norm = np.linalg.norm(x) if kind == "frobenius" else np.abs(x).sum()
    clean = np.linalg.norm(problem.matrix @ x - problem.target)
    assert value == pytest.approx(clean + problem.rho * norm, rel=1e-12)
    for _ in range(200):
        other = rng.normal(size=problem.matrix.shape)
        other *= problem.rho / sizes(other)[kind]
        assert robust.robust_value(problem, x, other) < value
        again = robust.worst(problem, x, kind, start=other)
        assert robust.robust_value(problem, x, again) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 5])
def test_both_sides_are_equal(kind, seed):
    row = robust.compare(robust.make_problem(seed), kind)
    assert row["difference"] < 1e-6
    assert row["x_difference"] < 1e-3  # the value is flat around the minimum
    assert -1e-9 < row["regularised"] - row["regularised_lower"] < 1e-6  # certified by the dual
    assert row["min_max"] - row["min_max_lower"] < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_other_sides_differ(kind):
    problem = robust.make_problem(0)
    value = robust.min_max(problem, kind).upper
    halved = robust.regularised(problem._replace(rho=problem.rho / 2), kind).value
    other = robust.regularised(problem, next(k for k in KINDS if k != kind)).value
    assert abs(value - halved) > 0.1
    assert abs(value - other) > 0.1
