"""Sums, means and places over a mapped axis: the only file that names ``jax.lax`` collectives."""

from typing import TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


def pmean(tree: T, axis_name: str | None) -> T:
    """Average a pytree over a mapped axis; without an axis, return it as it is."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def own(tree: T, axis_name: str | None) -> T:
    """Give each device of a mapped axis a copy of its own, for a derivative of what this device alone computes.

    Under ``shard_map`` with checked axes the derivative with respect to what all devices share is summed over
    them; that with respect to a copy is not.
    """
    if axis_name not in jax.sharding.get_abstract_mesh().manual_axes:
        return tree

    return _cast(tree, frozenset({axis_name}))


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


def index(axis_name: str) -> jax.Array:
    """Return the number of this device on a mapped axis, a scalar int32."""
    return jax.lax.axis_index(axis_name)


def varying(tree: T) -> T:
    """Mark all leaves as different on each device, where one of them is; outside ``shard_map`` do nothing.

    The carry of a compiled loop must have one type from the start, and under ``shard_map`` the axes over which
    an array varies are part of its type: zeros that wait for a sum over this device's examples are not yet
    varying, their sum is.
    """
    return _cast(tree, frozenset().union(*(_axes(x) for x in jax.tree.leaves(tree))))


def _axes(x: jax.Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


def _cast(tree: T, axes: frozenset[str | None]) -> T:
    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(axes - _axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
