"""Every transformation on four devices, four ways; prints the largest difference from one device as JSON.

Run by test_devices.py in a process of its own, for the number of devices is fixed when JAX starts.
"""

import functools
import json

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs.batch_size import gradient_statistics
from tests.transforms.cases import CASES, loss_fn, make_batch, make_params

DEVICES = 4
# The first example of each device's share first: those are the ones that the devices attack.
ORDER = np.argsort(np.arange(16) % DEVICES, kind="stable")


def make_step(case, axis_name):
    tx = case.make(axis_name=axis_name) if case.outside_masks else case.make()
    tx = optax.chain(tx, optax.sgd(0.1))

    def mean(tree):
        return tree if axis_name is None else jax.lax.pmean(tree, axis_name)

    def step(params, state, batch):
        gradient = mean(jax.grad(lambda p: mean(loss_fn(p, batch)))(params))
        updates, state = tx.update(gradient, state, params, **case.extra(batch))
        return optax.apply_updates(params, updates), state

    return tx, step


def pmapped(step):
    mapped = jax.pmap(step, axis_name="data")

    def run(params, state, batch):
        spread = jax.tree.map(lambda x: np.stack([np.asarray(x)] * DEVICES), (params, state))
        split = jax.tree.map(lambda x: np.reshape(x, (DEVICES, -1, *x.shape[1:])), batch)
        out = jax.device_get(mapped(*spread, split))
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.stack([x[0]] * DEVICES)), out)
        return jax.tree.map(lambda x: x[0], out)

    return run


def shard_mapped(step, check_vma):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = {"in_specs": (P(), P(), P("data")), "out_specs": (P(), P())}
    return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=check_vma, **specs))


def named_sharding(step):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    jitted = jax.jit(step)

    def run(params, state, batch):
        params, state = jax.device_put((params, state), NamedSharding(mesh, P()))
        return jitted(params, state, jax.device_put(batch, NamedSharding(mesh, P("data"))))

    return run


WAYS = {
    "pmap": ("data", pmapped),
    "shard_map with vma": ("data", functools.partial(shard_mapped, check_vma=True)),
    "shard_map without vma": ("data", functools.partial(shard_mapped, check_vma=False)),
    "NamedSharding": (None, named_sharding),
}


def follow(tx, run, order):
    params = make_params()
    state = tx.init(params)
    for seed in range(3):
        params, state = run(params, state, jax.tree.map(lambda x: x[order], make_batch(seed=seed)))
    return params, state


def difference(case, way):
    axis_name, wrap = WAYS[way]
    tx, step = make_step(case, None)
    # jit with NamedSharding attacks the first of the whole batch, as one device does.
    want = follow(tx, jax.jit(step), np.arange(16) if axis_name is None else ORDER)
    tx, step = make_step(case, axis_name)
    got = follow(tx, wrap(step), np.arange(16))
    errors = jax.tree.map(
        lambda a, b: float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))), got, want
    )
    return max(jax.tree.leaves(errors))


def statistics_difference():
    gradients = jax.random.normal(jax.random.key(0), (8, 5))
    want = gradient_statistics({"w": gradients}, 16)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = functools.partial(gradient_statistics, part_size=16, axis_name="data")
    got = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P()))({"w": gradients})
    return float(max(abs(float(a) - float(b)) for a, b in zip(got, want, strict=True)))


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    results = {}
    for name, case in CASES.items():
        for way in WAYS:
            try:
                results[f"{name}: {way}"] = difference(case, way)
            except Exception as error:
                results[f"{name}: {way}"] = f"{type(error).__name__}: {error}"[:2000]
    results["gradient statistics: shard_map with vma"] = statistics_difference()
    print(json.dumps(results))
