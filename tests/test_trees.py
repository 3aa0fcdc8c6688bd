"""Random pytrees: how they are distributed, and that they depend on nothing but the key and the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs import compiling, trees

LIKE = {
    "bias": np.zeros(8, np.float32),
    "scale": np.zeros((), np.float32),
    "weights": np.zeros((64, 32), np.float32),
}


@pytest.fixture(params=[2**24, 100], ids=["one-draw", "large-leaves"])
def drawn_at_once(request, monkeypatch):
    monkeypatch.setattr(trees, "_DRAWN_AT_ONCE", request.param)


@pytest.mark.sampled
@pytest.mark.parametrize("sampler", [jax.random.normal, jax.random.rademacher])
def test_entries_are_standard_and_independent(drawn_at_once, sampler):
    draws = [trees.random_like(jax.random.key(i), LIKE, sampler) for i in range(200)]
    table = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(draw)]) for draw in draws])
    assert len({row.tobytes() for row in table}) == 200
    # Mean and square within five standard deviations, each of the millions of products within seven.
    assert abs(table.mean()) < 5 / table.size**0.5
    assert abs((table**2).mean() - 1) < 5 * (2 / table.size) ** 0.5
    covariance = table.T @ table / len(table)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 7 / len(table) ** 0.5


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_numbers_are_those_of_one_device(drawn_at_once, four_devices, axis_type):
    mesh = jax.make_mesh((4,), ("model",), axis_types=(axis_type,))
    specs = {"bias": P("model"), "scale": P(), "weights": P(None, "model")}
    sharded = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in LIKE.items()}
    drawn = trees.normal_like(jax.random.key(3), sharded)
    assert {name: x.sharding.spec for name, x in drawn.items()} == specs
    jax.tree.map(np.testing.assert_array_equal, drawn, trees.normal_like(jax.random.key(3), LIKE))


def test_traced_numbers_are_those_of_a_direct_call(drawn_at_once):
    traced = jax.jit(lambda key: trees.normal_like(key, LIKE))(jax.random.key(3))
    direct = trees.normal_like(jax.random.key(3), LIKE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), traced, direct)


@jax.enable_x64(True)
def test_dtypes_and_trees_without_entries():
    mixed = {
        "double": jnp.zeros(3, jnp.float64),
        "half": jnp.zeros(5, jnp.bfloat16),
        "nothing": jnp.zeros((0, 2)),
    }
    drawn = trees.normal_like(jax.random.key(0), mixed)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), drawn) == jax.tree.map(
        lambda x: (x.shape, x.dtype), mixed
    )
    assert bool(jnp.any(drawn["double"] != drawn["double"].astype(jnp.float32)))
    assert trees.normal_like(jax.random.key(0), {}) == {}
    assert trees.normal_like(jax.random.key(0), (None, jnp.zeros(0)))[1].size == 0


def test_trees_of_a_like_size_share_their_programs():
    trees.normal_like(jax.random.key(0), jnp.zeros(900))
    before = compiling.seconds()
    trees.normal_like(jax.random.key(1), [np.zeros((3, i), np.float32) for i in range(1, 21)])  # 630 in all
    assert compiling.seconds() == before
