"""Bounds of the inputs around one example. One that lies outside of them is not brought in: they are widened to
it.

Everything here takes ONE example of any shape and is mapped over examples by its caller.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import trees

Bounds = tuple[float, float] | None
"""(lowest, highest) value of an input, in the units of the batch."""


def within(point: jax.Array, inputs: jax.Array, bounds: Bounds) -> jax.Array:
    """Bring a point between the bounds, widened to where the example is.

    Args:
      point: Any shape.
      inputs: The example.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``point``.

    Example:
      >>> within(jnp.array([-3.0, 5.0]), jnp.array([-2.0, 0.5]), (0.0, 1.0))
      Array([-2.,  1.], dtype=float32)
    """
    if bounds is None:
        return point
    low, high = widened(inputs, bounds)
    return jnp.clip(point, low, high)


def widened(inputs: jax.Array, bounds: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
    """Return the bounds of each entry of an example: those given, or the entry itself where it lies outside.

    Args:
      inputs: Any shape.
      bounds: (lowest, highest).

    Returns:
      ``(lowest, highest)``, each like ``inputs``.
    """
    return jnp.minimum(inputs, bounds[0]), jnp.maximum(inputs, bounds[1])


def room(signs: jax.Array, point: jax.Array, inputs: jax.Array, bounds: Bounds) -> jax.Array | None:
    """Return how far each entry of a point may go.

    Args:
      signs: Which way: 1 up, else down; any shape.
      point: Where from.
      inputs: The example.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``point`` in at least float32, at least 0; None without bounds.
    """
    if bounds is None:
        return None
    low, high = widened(trees.upcast(inputs), bounds)
    point = trees.upcast(point)
    return jnp.maximum(jnp.where(signs > 0, high - point, point - low), 0)


def add(inputs: jax.Array, delta: jax.Array, bounds: Bounds, most: Any = None) -> jax.Array:
    """Add a perturbation to an example, in the dtype of the example.

    Args:
      inputs: The example.
      delta: A perturbation.
      bounds: (lowest, highest), or None.
      most: The largest change of an entry, or None. A sum that is rounded beyond it goes back by one rounding.

    Returns:
      A point between the bounds, like ``inputs``.
    """
    point = within((inputs + delta).astype(inputs.dtype), inputs, bounds)
    if most is not None:
        outside = jnp.abs(trees.upcast(point) - trees.upcast(inputs)) > most
        point = jnp.where(outside, jnp.nextafter(point, inputs), point)
    return point
