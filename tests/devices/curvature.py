"""Curvature on several devices, three ways, and with sharded params, against one device; prints JSON.

Run by test_devices.py, with eight devices in a process of its own: their number is fixed when JAX starts.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import hessabs
from hessabs import curvature
from tests.devices.ways import DEVICES, WAYS, collectives, data_mesh, largest_difference, same_bits


def loss_fn(params, batch):
    x = jnp.tanh(batch["x"] @ params["hidden"] + params["bias"])
    logits = x @ params["head"]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(logits)), batch["y"]])


def problem(n=32):
    rng = np.random.default_rng(0)
    params = {"hidden": rng.normal(size=(6, 8)), "bias": rng.normal(size=8), "head": rng.normal(size=(8, 4))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return params, {"x": rng.normal(size=(n, 6)).astype(np.float32), "y": rng.integers(0, 4, n)}


def eigenpair(axis_name):
    def top(params, batch):
        matvec = hessabs.hessian(loss_fn, params, batch, axis_name=axis_name)
        result = hessabs.power_iteration(matvec, params, max_iters=100, rtol=1e-5, loop="device")
        return {"eigenvalue": result.eigenvalue, "eigenvector": result.eigenvector}

    return top


def product(axis_name):
    return lambda params, batch: hessabs.hvp(loss_fn, params, batch, params, axis_name=axis_name)


def gauss_newton(axis_name):
    def multiply(params, batch):
        def outputs(params, batch):
            return jnp.tanh(batch["x"] @ params["hidden"] + params["bias"]) @ params["head"]

        def loss(logits, batch):
            return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(logits)), batch["y"]])

        return curvature.gauss_newton(outputs, loss, params, batch, axis_name=axis_name)(params)

    return multiply


MEASURES = {"hvp": product, "gauss_newton": gauss_newton, "eigenpair": eigenpair}


def three_ways(name):
    params, batch = problem()
    results, make = {}, MEASURES[name]
    want = jax.jit(make(None))(params, batch)
    for way, wrap in WAYS.items():
        run, lower = wrap(make(None if way == "NamedSharding" else "data"), per_example=False)
        got = run(params, batch)
        results[f"{name}: {way}"] = {
            "difference": largest_difference(got, want),
            "size": largest_difference(got, jax.tree.map(np.zeros_like, got)),
            "same bits": same_bits(got, run(params, batch)),
            "collectives": collectives(lower(params, batch)),
        }
    return results


def sharded_params():
    """A mesh of two axes: batches split over one, params over the other."""
    devices = np.array(jax.devices()).reshape(DEVICES // 2, 2)
    mesh = Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    params, batch = problem()
    specs = {"hidden": P(None, "model"), "bias": P("model"), "head": P("model", None)}
    split = jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), params, specs)
    shards = jax.device_put(batch, NamedSharding(mesh, P("data")))

    def measure(params, batch):
        results = {"hvp": hessabs.hvp(loss_fn, params, batch, params)}
        for linearize in (False, True):
            operator = hessabs.hessian(loss_fn, params, batch, linearize=linearize)
            for loop in ("host", "device"):
                top = hessabs.power_iteration(operator, params, max_iters=100, rtol=1e-5, loop=loop)
                results[f"power_iteration, linearize={linearize}, {loop}"] = (top.eigenvalue, top.eigenvector)
        pairs = curvature.eigsh(operator, params, 3, rtol=1e-4)
        results["eigsh"] = pairs.eigenvalues
        estimate = curvature.trace(operator, params, jax.random.key(0), num_matvecs=4)
        results["trace"] = estimate.value
        return results

    want, got = measure(params, batch), measure(split, shards)
    vector = got["hvp"]["hidden"]
    return {
        **{
            f"sharded params: {name}": {"difference": largest_difference(got[name], want[name])}
            for name in want
        },
        "product stays sharded": not vector.sharding.is_fully_replicated,
    }


def data_set():
    params, batch = problem(44)
    parts = (slice(0, 16), slice(16, 32), slice(32, 44))
    batches = [jax.tree.map(lambda x, part=part: x[part], batch) for part in parts]
    want = curvature.dataset_hessian(loss_fn, params, batches)(params)
    operator = curvature.dataset_hessian(loss_fn, params, batches, mesh=data_mesh())
    got = operator(params)
    return {
        "data set": {
            "difference": largest_difference(got, want),
            "same bits": same_bits(got, operator(params)),
        }
    }


def find(names):
    parts = {"sharded params": sharded_params, "data set": data_set}
    results = {}
    for name in names:
        results |= parts[name]() if name in parts else three_ways(name)
    return results


if __name__ == "__main__":
    print(json.dumps(find(sys.argv[1:] or [*MEASURES, "sharded params", "data set"])))
