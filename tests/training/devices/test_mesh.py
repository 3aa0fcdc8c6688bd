"""Several CPU devices of one process."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs.training.mesh import DATA, keep_up, make_mesh


def test_many_programs_with_a_collective_end():
    # Without waiting they end in XLA's "may be stuck" and an abort, on two cores every time.
    mesh = make_mesh(4)
    step = jax.jit(lambda x: jnp.tanh(x @ x.T @ x / 100 + jnp.sum(x) / x.size))
    x = jax.device_put(np.eye(256, dtype=np.float32), NamedSharding(mesh, P(DATA)))
    assert "all-reduce" in step.lower(x).compile().as_text()
    for _ in range(100):
        x = step(x)
        keep_up(x, mesh)
        assert x.is_ready()
    assert np.isfinite(np.asarray(x)).all()


def test_one_device_is_not_waited_for():
    keep_up(object(), None)  # not an array: nothing looks at it
