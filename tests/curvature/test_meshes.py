"""Products over a data set and loops over them, on automatic and explicit meshes, params sharded or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs import curvature

pytestmark = pytest.mark.sampled

SHAPES = {"one axis": (4,), "two axes": (2, 2)}
SPECS = {
    "replicated": {"a": P(), "b": P()},
    "split features": {"a": P(None, "last"), "b": P("last")},
    "split inputs": {"a": P("last", None), "b": P()},
}


def loss_fn(params, x):
    hidden = jnp.tanh(jnp.dot(x, params["a"], out_sharding=out_sharding(x, params["a"])))
    return jnp.mean(jnp.sum(hidden**2, axis=-1)) + jnp.sum(params["b"] ** 4)


def out_sharding(x, a):
    # Under explicit axes a product says where it goes when one axis is in both factors.
    mesh = jax.typeof(a).sharding.mesh
    if mesh.empty or not mesh.are_all_axes_explicit:
        return None
    return NamedSharding(mesh, P(jax.typeof(x).sharding.spec[0], None))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(4, 8)).astype(np.float32), "b": rng.normal(size=8).astype(np.float32)}
    return params, [rng.normal(size=(n, 4)).astype(np.float32) for n in (6, 4, 1)]


@pytest.mark.parametrize(
    ("shape", "specs", "kind"),
    [
        ("one axis", "replicated", AxisType.Explicit),
        ("two axes", "replicated", AxisType.Auto),
        ("one axis", "split features", AxisType.Auto),
        ("two axes", "split features", AxisType.Explicit),
        ("one axis", "split inputs", AxisType.Explicit),
        ("two axes", "split inputs", AxisType.Auto),
    ],
)
def test_products(problem, shape, specs, kind):
    params, batches = problem
    want = curvature.dataset_hessian(loss_fn, params, batches)(params)
    names = ("first", "last")[-len(SHAPES[shape]) :]
    mesh = jax.make_mesh(SHAPES[shape], names, axis_types=(kind,) * len(names))
    shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS[specs].items()}
    split = jax.device_put(params, shardings)
    got = curvature.dataset_hessian(loss_fn, split, batches, mesh=mesh)(split)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6), got, want)
    if specs != "replicated":
        assert got["a"].sharding.shard_shape((4, 8)) == shardings["a"].shard_shape((4, 8))


@pytest.mark.slow
def test_a_loop_over_sharded_params_waits(problem, monkeypatch):
    params, batches = problem
    mesh = jax.make_mesh((4,), ("last",), axis_types=(AxisType.Explicit,))
    split = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in SPECS["split features"].items()})
    waits = []
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waits.append(1) or wait(x))
    operator = curvature.hessian(loss_fn, split, batches[0])
    estimate = curvature.diagonal(operator, split, jax.random.key(0), num_matvecs=5)
    assert len(waits) == 5
    assert estimate.value["a"].sharding.shard_shape((4, 8)) == (4, 2)
    curvature.hessian(loss_fn, split, batches[0], linearize="auto", memory_budget=1)(split)
    assert len(waits) == 5 + 6
