"""Landscapes against the loss itself, interrupted and continued; pictures are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature
from hessabs.paths import paths
from tests.curvature import models

pytestmark = pytest.mark.sampled


def test_values_are_the_losses_along_the_directions(make_problem, random_like):
    problem = make_problem("mlp")
    directions = [random_like(problem.params, i) for i in (1, 2)]
    grid = [np.array([-1.0, 0.0, 0.5]), np.array([0.0, 2.0])]
    batches = [jax.tree.map(lambda x, s=s: x[s], problem.batch) for s in (slice(0, 7), slice(7, 12))]
    result = curvature.landscape(problem.loss_fn, problem.params, batches, directions, grid)
    loss = jax.jit(problem.loss_fn)
    for i, s in enumerate(grid[0]):
        for j, t in enumerate(grid[1]):
            moved = jax.tree.map(lambda p, a, b, s=s, t=t: p + s * a + t * b, problem.params, *directions)
            np.testing.assert_allclose(result.values[i, j], loss(moved, problem.batch), rtol=1e-5)


@pytest.mark.slow
def test_second_difference_is_the_eigenvalue(x64, make_problem):
    problem = make_problem("mlp", jnp.float64)
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    top = curvature.eigsh(operator, problem.params, 1, rtol=1e-8)
    direction = jax.tree.map(lambda x: x[0], top.eigenvectors)
    line = curvature.landscape(
        problem.loss_fn, problem.params, [problem.batch], [direction], [np.array([-1e-3, 0, 1e-3])]
    )
    np.testing.assert_allclose(np.diff(line.values, 2) / 1e-6, top.eigenvalues, rtol=1e-4)


def test_interrupted_grid_goes_on(make_problem, random_like):
    problem = make_problem("mlp")
    evaluated = []

    class Batches:
        def __iter__(self):
            evaluated.append(1)
            yield problem.batch

    run = lambda **options: curvature.landscape(  # noqa: E731
        problem.loss_fn,
        problem.params,
        Batches(),
        [random_like(problem.params)],
        [np.linspace(-1, 1, 7)],
        **options,
    )
    whole = run()
    assert len(evaluated) == 7
    saved = []

    def interrupt(landscape):
        saved.append(landscape.values.copy())
        if len(saved) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_point=interrupt)
    assert np.isnan(saved[-1]).sum() == 4
    part = run(values=saved[-1], max_points=2)
    assert np.isnan(part.values).sum() == 2
    np.testing.assert_array_equal(run(values=part.values).values, whole.values)
    assert len(evaluated) == 7 + 3 + 2 + 2


def test_loss_that_is_nan_is_not_evaluated_again():
    result = curvature.landscape(
        lambda w, x: jnp.sqrt(w), jnp.ones(()), [jnp.ones(1)], [jnp.ones(())], [np.array([-2.0])]
    )
    np.testing.assert_array_equal(result.values, [np.inf])


def test_random_direction_has_the_norm_of_every_filter():
    params = {
        "conv": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4))), "bias": jnp.ones(4)}
    }
    direction = curvature.filter_normalized_direction(jax.random.key(0), params)
    norms = [np.linalg.norm(x["conv"]["kernel"], axis=2) for x in (params, direction)]
    norms = [np.sqrt((n**2).sum((0, 1))) for n in norms]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_array_equal(direction["conv"]["bias"], 0)
    zero = curvature.filter_normalized_direction(jax.random.key(0), {"w": jnp.zeros((2, 2))})
    np.testing.assert_array_equal(zero["w"], 0)


@pytest.mark.parametrize(
    "library", ["linen", "equinox", *(pytest.param(n, marks=pytest.mark.slow) for n in ("haiku", "nnx"))]
)
def test_filters_of_every_library(library):
    params, _ = models.make(library)
    direction = curvature.filter_normalized_direction(jax.random.key(7), params)
    assert jax.tree.structure(direction) == jax.tree.structure(params)
    outputs = 0 if library == "equinox" else 1
    for path, param, drawn in zip(
        paths(params), jax.tree.leaves(params), jax.tree.leaves(direction), strict=True
    ):
        if param.ndim < 2:
            np.testing.assert_array_equal(drawn, 0)
            continue
        norms = [np.linalg.norm(x, axis=1 - outputs) for x in (param, drawn)]
        np.testing.assert_allclose(*norms, rtol=1e-5, err_msg=path)
        assert np.abs(drawn - param).max() > 0.1


@pytest.mark.slow
def test_filters_of_a_stack_of_layers():
    params = {"steps": {"weight": jnp.arange(1.0, 25).reshape(2, 3, 4), "norm": jnp.ones((2, 4))}}
    for output_axis, summed in ((-1, 1), (0, 2)):
        direction = curvature.filter_normalized_direction(
            jax.random.key(0), params, output_axis=output_axis, stacked="steps"
        )["steps"]
        norms = [np.linalg.norm(x, axis=summed) for x in (params["steps"]["weight"], direction["weight"])]
        np.testing.assert_allclose(*norms, rtol=1e-5)
        np.testing.assert_array_equal(direction["norm"], 0)
    scanned, _ = models.make("scanned")  # what flax calls a scale or a bias is one, stacked or not
    direction = curvature.filter_normalized_direction(jax.random.key(0), scanned)
    np.testing.assert_array_equal(direction["steps"]["LayerNorm_0"]["scale"], 0)
    np.testing.assert_array_equal(direction["steps"]["Dense_0"]["bias"], 0)


def test_bad_input_is_refused():
    w, grid = jnp.ones(2), np.zeros(3)
    loss = lambda w, x: jnp.sum(w)  # noqa: E731
    with pytest.raises(ValueError, match="must both have one or two entries, got 1 and 2"):
        curvature.landscape(loss, w, [w], [w], [grid, grid])
    with pytest.raises(ValueError, match=r"must have the shape of the grid, \(3,\), got \(4,\)"):
        curvature.landscape(loss, w, [w], [w], [grid], values=np.zeros(4))
    with pytest.raises(ValueError, match="`a direction` must have the structure of `params`"):
        curvature.landscape(loss, w, [w], [jnp.ones(3)], [grid])
    with pytest.raises(ValueError, match="The data set is empty"):
        curvature.landscape(loss, w, [], [w], [grid])
