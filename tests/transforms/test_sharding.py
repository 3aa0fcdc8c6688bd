"""State is sharded like the params, on meshes with automatic and with explicit axes, jitted and not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import hessabs
from tests.transforms.cases import make_params

pytestmark = pytest.mark.sampled

RULE = hessabs.batch_size.timer(16, 64, every=16)
SPECS = {"w": P("model", "data"), "b": P("data")}


def make_tx():
    inner = optax.chain(hessabs.adaptive_batch_size(RULE), optax.adam(0.1))
    return hessabs.accumulate(inner, micro_batch_size=8, statistics=True)


def padded_params():
    """Params whose axes two devices divide."""
    return {"w": jnp.pad(make_params()["w"], ((0, 0), (0, 1))), "b": jnp.arange(4.0) - 1}


def follow(params, jitted, steps=3):
    tx = make_tx()
    state = tx.init(params)
    update = jax.jit(tx.update) if jitted else tx.update
    for step in range(steps):
        gradient = jax.tree.map(lambda p, step=step: jnp.sin(p + step), params)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.fixture(scope="module")
def one_device():
    return follow(padded_params(), jitted=True)


@pytest.mark.slow
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_accumulation_of_sharded_params_is_that_of_one_device(one_device, kind, jitted):
    want, want_state = one_device
    mesh = jax.make_mesh((2, 2), ("model", "data"), axis_types=(kind, kind))
    with jax.set_mesh(mesh):
        shardings = {name: NamedSharding(mesh, spec) for name, spec in SPECS.items()}
        params = jax.device_put(padded_params(), shardings)
        assert jax.tree.map(lambda x: x.sharding, make_tx().init(params).total) == shardings
        got, state = follow(params, jitted)
    for name, sharding in shardings.items():
        for leaf in (got[name], state.total[name], optax.tree.get(state, "mu")[name]):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    for a, b in zip(jax.tree.leaves((got, state)), jax.tree.leaves((want, want_state)), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-5, atol=1e-6)


def test_parts_of_params_under_shard_map():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    tx = hessabs.accumulate(optax.sgd(1.0), num_micro_batches=2)

    def run(part):
        state = tx.init(part)
        for scale in (1.0, 3.0):
            updates, state = tx.update(scale * part, state, part)
        return updates

    params = jnp.arange(8.0)
    got = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(params)
    np.testing.assert_allclose(got, -2 * params)
