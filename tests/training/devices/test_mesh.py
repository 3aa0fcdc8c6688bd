"""Several CPU devices of one process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs.batch_size import constant
from hessabs.training import LossOutput, RunSettings, fit, tasks
from hessabs.training.mesh import DATA, default_partition, make_mesh, read_mesh, shardings, wait_for


def test_many_programs_with_a_collective_end():
    # Without waiting they end in XLA's "may be stuck" and an abort, on two cores every time.
    mesh = make_mesh({DATA: 4})
    step = jax.jit(lambda x: jnp.tanh(x @ x.T @ x / 100 + jnp.sum(x) / x.size))
    x = jax.device_put(np.eye(256, dtype=np.float32), NamedSharding(mesh, P(DATA)))
    assert "all-reduce" in step.lower(x).compile().as_text()
    for _ in range(100):
        x = step(x)
        wait_for(x, mesh)
        assert x.is_ready()
    assert np.isfinite(np.asarray(x)).all()


def test_one_device_is_not_waited_for():
    wait_for(object(), None)  # not an array: nothing looks at it


@pytest.mark.parametrize(
    ("mesh", "devices", "message"),
    [
        ("4", None, "must be data=N, or data=N,model=M, got '4'"),
        ("data=0", None, "must be data=N, or data=N,model=M, got 'data=0'"),
        ("data=2,data=2", None, "must be data=N, or data=N,model=M"),
        ("model=2,data=2", None, "must begin with data=N, over which batches are split"),
        ("data=2,model=2", 2, "`mesh` and `devices` must agree, got data=2,model=2 and 2"),
        (None, 0, "`devices` must be at least 1, got 0"),
    ],
)
def test_a_mesh_that_is_none(mesh, devices, message):
    with pytest.raises(ValueError, match=message):
        read_mesh(mesh, devices)


def test_a_mesh_that_is_not_there():
    with pytest.raises(ValueError, match=r"`devices` must lie in \[1, .*=4\], got 8; .*JAX_NUM_CPU_DEVICES=8"):
        make_mesh({DATA: 4, "model": 2})


def test_momenta_lie_where_their_params_do():
    mesh = make_mesh({DATA: 2, "model": 2})
    params = {"dense": {"kernel": jnp.zeros((3, 6)), "bias": jnp.zeros(6)}, "odd": jnp.zeros((4, 3))}
    specs = default_partition(mesh, params)
    assert specs == {"dense": {"kernel": P(None, "model"), "bias": P(None)}, "odd": P("model", None)}
    state = optax.adam(0.1).init(params)
    where = shardings(state, params, specs, mesh)
    for moments in (where[0].mu, where[0].nu):
        assert jax.tree.map(lambda place: place.spec, moments) == specs
    assert where[0].count.spec == P()


@pytest.mark.slow
@pytest.mark.usefixtures("four_devices")
def test_a_loss_in_which_examples_meet_is_that_of_a_whole_micro_batch():
    rng = np.random.default_rng(0)
    x = rng.random((96, 12)).astype(np.float32)
    params = {name: jnp.asarray(rng.normal(size=(12, 8)), jnp.float32) for name in "ab"}

    def contrastive(params, model_state, batch, key, train):
        weight = batch["weight"]
        left, right = batch["x"] @ params["a"], batch["x"][:, ::-1] @ params["b"]
        logits = jnp.where(weight > 0, left @ right.T, -1e9)
        each, total = -jnp.diag(jax.nn.log_softmax(logits, axis=1)), jnp.sum(weight)
        return LossOutput(jnp.sum(weight * each) / jnp.maximum(total, 1), total, model_state)

    task = tasks.plain(params, contrastive, {"x": x}, {"x": x[:32]})
    found = [
        fit(
            task,
            optax.sgd(0.05),
            constant(32),
            epochs=2,
            micro_batch_size=32,
            settings=RunSettings(devices=devices, hessian_batch_size=16),
        )
        for devices in (1, 4)
    ]
    one, four = ([record["train_loss"] for record in each.records] for each in found)
    np.testing.assert_allclose(four, one, rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(each.params) for each in found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
