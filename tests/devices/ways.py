"""The ways to use several devices, as functions of (a function of (params, batch), what it returns)."""

import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

DEVICES = jax.device_count()


def data_mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))


def named_sharding(function, *, per_example):
    """jit, with the batch split and the params on every device."""
    del per_example
    mesh = data_mesh()
    jitted = jax.jit(function)

    def place(params, batch):
        return (
            jax.device_put(params, NamedSharding(mesh, P())),
            jax.device_put(batch, NamedSharding(mesh, P("data"))),
        )

    return lambda *operands: jitted(*place(*operands)), lambda *operands: jitted.lower(*place(*operands))


def shard_map(function, *, per_example, check_vma=True):
    """shard_map over the axis "data"."""
    out = P("data") if per_example else P()
    specs = {"in_specs": (P(), P("data")), "out_specs": out, "check_vma": check_vma}
    jitted = jax.jit(jax.shard_map(function, mesh=data_mesh(), **specs))
    return jitted, jitted.lower


def pmap(function, *, per_example):
    """pmap over the axis "data"; the results of the devices one behind the other, or the one that all have."""
    mapped = jax.pmap(function, axis_name="data", in_axes=(None, 0))

    def split(batch):
        return jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)

    def join(x):
        x = np.asarray(x)
        if per_example:
            return x.reshape(-1, *x.shape[2:])
        np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape))
        return x[0]

    return (
        lambda params, batch: jax.tree.map(join, mapped(params, split(batch))),
        lambda params, batch: mapped.lower(params, split(batch)),
    )


WAYS = {"NamedSharding": named_sharding, "shard_map": shard_map, "pmap": pmap}


def collectives(lowered):
    """List the collectives of a compiled program: [(kind, elements)]."""
    found = re.findall(
        r"= (\(?[^=]*?)(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(",
        lowered.compile().as_text(),
    )
    return [(kind, _elements(shapes)) for shapes, kind in found]


def _elements(shapes):
    sizes = re.findall(r"[a-z]+\d*\[([\d,]*)\]", shapes)
    return sum(int(np.prod([int(n) for n in size.split(",") if n] or [1])) for size in sizes)


def largest_difference(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))) for a, b in pairs)


def same_bits(one, two):
    return all(
        np.array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )
