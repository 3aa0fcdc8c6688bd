"""The experiment on Theorem 2, small: the bound holds and its controls do not."""

import numpy as np
import pytest

from experiments.theorem2 import run as theorem2

SMALL = theorem2.Setting(num_examples=128, dimension=8, steps=400, doubling=60, repetitions=60)


@pytest.fixture(scope="module")
def results():
    return theorem2.experiment(SMALL)[0]


def test_the_optimum_is_one():
    problem = theorem2.make_problem(SMALL)
    nearby = problem.optimum + 0.01 * np.random.default_rng(0).normal(size=(50, 8))
    assert (theorem2.loss(problem, nearby) > problem.lowest).all()
    # Strong convexity and smoothness between the optimum and any point: the constants are rigorous.
    gaps = theorem2.loss(problem, nearby) - problem.lowest
    squares = np.sum((nearby - problem.optimum) ** 2, axis=1)
    assert (gaps >= problem.strong_convexity / 2 * squares * (1 - 1e-6)).all()
    assert (gaps <= problem.smoothness / 2 * squares * (1 + 1e-6)).all()


def test_step_and_batch_are_proportional_in_every_schedule():
    for name, (sizes, units) in theorem2.schedules(SMALL).items():
        np.testing.assert_allclose(units, sizes, err_msg=name)
    sizes, _ = theorem2.schedules(SMALL)["growing 2 to 64"]
    assert [int(size) for size in sizes[[0, 59, 60, 119, 120, 300]]] == [2, 2, 4, 4, 8, 64]


@pytest.mark.slow
def test_the_bound_holds(results):
    assert len(results["runs"]) == 6
    assert all(row["holds"] for row in results["runs"]), results["runs"]
    # It is a bound and not far away: the smallest batch comes within a tenth of it.
    assert max(row["largest mean / bound"] for row in results["runs"]) > 0.9


@pytest.mark.slow
def test_a_strong_convexity_that_the_loss_does_not_have_breaks_it(results):
    broken = [row for row in results["controls"] if row["batch"] != "constant 64"]
    assert len(broken) == 4
    assert not any(row["holds"] for row in broken), broken


def test_the_floor_is_that_of_the_noise_and_not_of_the_batch(results):
    for fraction, spread in ((1.0, 2.5), (0.1, 1.3)):
        floors = [r for r in results["floors"] if r["fraction of the largest eta0"] == fraction]
        gaps = [row["mean gap in the last quarter"] for row in floors]
        assert max(gaps) / min(gaps) < spread
        assert all(row["mean gap in the last quarter"] < row["C"] for row in floors)
        assert max(row["batch"] for row in floors) == 32 * min(row["batch"] for row in floors)
