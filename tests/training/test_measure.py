"""Curvature and gradients while training, against dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh

from hessabs import trees
from hessabs.curvature import last_layer_path
from hessabs.training.measure import (
    gradient_norm,
    make_measure,
    make_track,
)
from hessabs.training.settings import RunSettings, check_run
from tests.training.look import kinds

pytestmark = pytest.mark.sampled
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in (kinds.images, kinds.tokens, kinds.plain)]


def raw(source, number):
    return {**source.take(np.arange(number)), "weight": np.ones(number, np.float32)}


def mean_loss(run, batch):
    flat, unravel = ravel_pytree(run.params)
    batch = run.task.prepare(batch)
    key = jax.random.key(0)
    return flat, lambda x: run.task.loss(unravel(x), run.model_state, batch, key, False).mean


@pytest.mark.parametrize("kind", [*SLOW[:2], kinds.plain], ids=["images", "tokens", "plain"])
def test_the_top_eigenvalue_is_that_of_the_dense_hessian(kind):
    run = kind()
    task, params, model_state, _ = run
    batch = raw(task.train, 48)
    flat, loss = mean_loss(run, batch)
    values = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat))
    want = values[np.abs(values).argmax()]
    v0 = trees.normal_like(jax.random.key(0), params)
    got = make_measure(task, batch, max_iters=200, rtol=1e-3)(params, model_state, v0)
    assert float(got.eigenvalue) == pytest.approx(want, rel=1e-3)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    split = make_measure(task, batch, max_iters=200, rtol=1e-3, mesh=mesh)(params, model_state, v0)
    assert float(split.eigenvalue) == pytest.approx(want, rel=1e-3)


@pytest.mark.slow
def test_a_block_is_that_of_the_dense_hessian_and_leaves_the_rest_of_the_vector():
    run = kinds.tokens()
    task, params, model_state, _ = run
    batch = raw(task.train, 48)
    flat, loss = mean_loss(run, batch)
    head = last_layer_path(params, task.num_classes)
    assert head == "Dense_0"
    rows = kinds.places(params, head)
    want = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat)[np.ix_(rows, rows)])[-1]
    v0 = trees.normal_like(jax.random.key(0), params)
    measure = make_measure(task, batch, max_iters=300, rtol=1e-3)
    got = measure(params, model_state, v0, head)
    assert float(got.eigenvalue) == pytest.approx(want, rel=1e-3)
    np.testing.assert_array_equal(got.eigenvector["Embed_0"]["embedding"], v0["Embed_0"]["embedding"])
    tracked = make_track(("eigenvalue", "last_layer_eigenvalue"), task, batch, measure)(params, model_state, v0)
    assert tracked["last_layer_eigenvalue"] == pytest.approx(want, rel=2e-2)
    assert want < tracked["eigenvalue"] * 1.01
    assert tracked["residual"] <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [SLOW[0], kinds.tokens, SLOW[2]], ids=["images", "tokens", "plain"])
def test_the_gradient_norm_is_over_the_whole_training_set_by_the_weight_of_the_loss(kind):
    run = kind()
    task, params, model_state, _ = run
    flat, loss = mean_loss(run, raw(task.train, len(task.train)))
    want = np.linalg.norm(jax.jit(jax.grad(loss))(flat))
    assert gradient_norm(task, params, model_state, batch_size=23) == pytest.approx(want, rel=1e-4)
    (norm,) = make_track(("gradient_norm",), task, None, None)(params, model_state, params).values()
    assert norm == pytest.approx(want, rel=1e-4)


def test_names_of_what_is_tracked():
    assert RunSettings().tracked == ()
    assert RunSettings(track="gradient_norm, eigenvalue").tracked == ("gradient_norm", "eigenvalue")
    with pytest.raises(ValueError, match=r"`track` must name some of eigenvalue, .* got 'loss'"):
        check_run(RunSettings(track="loss"))


def test_what_is_not_finite_is_recorded_as_nan():
    task, params, model_state, _ = kinds.plain()
    broken = jax.tree.map(lambda x: x * jnp.inf, params)
    (norm,) = make_track(("gradient_norm",), task, None, None)(broken, model_state, params).values()
    assert np.isnan(norm)
