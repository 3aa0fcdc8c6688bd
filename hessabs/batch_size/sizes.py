"""Batches that grow from a first one to a maximum, in whole multiples of the first."""

from typing import Any

import jax
import jax.numpy as jnp


def grow_by(factor: jax.Array, growth: float) -> jax.Array:
    """Multiply a whole number of initial batches, at least by one more: ``max(f + 1, floor(f * growth))``."""
    return jnp.maximum(factor + 1, jnp.floor(factor * growth).astype(jnp.int32))


def whole_batches(factor: jax.Array, initial: int, maximum: int) -> jax.Array:
    """Return the examples of a whole number of initial batches, the maximum where that is less; int32."""
    most = maximum // initial
    return jnp.where(factor > most, maximum, jnp.minimum(factor, most) * initial)


def ladder(initial: int, maximum: int, growth_factor: float, *, growths: int | None = None) -> list[int]:
    """List the batches that growth goes through, as ``grow_by`` does; without ``growths`` to the maximum.

    >>> ladder(2, 25, 1.5)
    [2, 4, 6, 8, 12, 18, 25]
    """
    sizes, factor = [initial], 1
    while len(sizes) <= growths if growths is not None else sizes[-1] < maximum:
        factor = max(factor + 1, int(factor * growth_factor)) if sizes[-1] < maximum else factor
        sizes.append(min(factor * initial, maximum))
    return sizes


def rounded(a: Any, b: Any) -> jax.Array:
    """Multiply two float32 scalars that are not negative, rounded before anything is added.

    A compiler may fuse a product and a sum, which gives other bits than eager code; the maximum stands between.
    """
    return jnp.maximum(jnp.asarray(a, jnp.float32) * jnp.asarray(b, jnp.float32), 0)
