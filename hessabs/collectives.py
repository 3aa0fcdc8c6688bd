"""Sums, means and places over a mapped axis: the only file that names ``jax.lax`` collectives."""

from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def pmean(tree: T, axis_name: str | None) -> T:
    """Average a pytree over a mapped axis; without an axis, return it as it is."""
    if axis_name is None:
        return tree
    return jax.lax.pmean(tree, axis_name)


def own(tree: T, axis_name: str | None) -> T:
    """Give each device of a mapped axis a copy of its own, for a derivative of what this device alone computes.

    Under ``shard_map`` with checked axes the derivative with respect to what all devices share is summed over
    them; that with respect to a copy is not.
    """
    if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree

    def mark(x: jax.Array) -> jax.Array:
        varies = axis_name in jax.typeof(x).manual_axis_type.varying
        return x if varies else jax.lax.pcast(x, axis_name, to="varying")

    return jax.tree.map(mark, tree)


def weighted_mean(tree: T, weight: jax.Array | None, axis_name: str | None) -> T:
    """Average a pytree over a mapped axis, each device's share by its weight; without an axis, return it.

    What comes with a weight of 0 is not looked at: it may be NaN.
    """
    if axis_name is None or weight is None:
        return pmean(tree, axis_name)
    total = psum(weight, axis_name)
    summed = psum(jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0), tree), axis_name)
    return jax.tree.map(lambda s, x: (s / total).astype(x.dtype), summed, tree)


def psum(tree: T, axis_name: str) -> T:
    """Sum a pytree over a mapped axis."""
    return jax.lax.psum(tree, axis_name)


def size(axis_name: str) -> int:
    """Return how many devices a mapped axis has."""
    return int(jax.lax.axis_size(axis_name))


def index(axis_name: str) -> jax.Array:
    """Return the number of this device on a mapped axis, a scalar int32."""
    return jax.lax.axis_index(axis_name)


def varying(tree: T) -> T:
    """Mark all leaves as different on each device, where one of them is; outside ``shard_map`` do nothing.

    The carry of a compiled loop must have one type from the start, and under ``shard_map`` the axes over which
    an array varies are part of its type: zeros that wait for a sum over this device's examples are not yet
    varying, their sum is.
    """
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in jax.tree.leaves(tree)))

    def mark(x: jax.Array) -> jax.Array:
        missing = tuple(axes - jax.typeof(x).manual_axis_type.varying)
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree)
