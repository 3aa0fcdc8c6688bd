"""Sums and means over a mapped axis: the only file that names ``jax.lax`` collectives."""

from typing import TypeVar

import jax

T = TypeVar("T")


def pmean(tree: T, axis_name: str | None) -> T:
    """Average a pytree over a mapped axis; without an axis, return it as it is.

    Args:
      tree: A pytree of arrays.
      axis_name: The name of an axis of ``pmap``, ``shard_map`` or ``vmap``, or None.

    Returns:
      The tree with each leaf averaged over the axis.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jax.vmap(lambda x: pmean(x, "i"), axis_name="i")(jnp.arange(3.0))
      Array([1., 1., 1.], dtype=float32)
    """
    if axis_name is None:
        return tree
    return jax.lax.pmean(tree, axis_name)
