"""Several CPU devices of one process."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

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
