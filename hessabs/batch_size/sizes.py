"""Sizes of batches that grow from a first one to a maximum, in whole multiples of it, and of their parts."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def grow_by(factor: jax.Array, growth: float) -> jax.Array:
    """Multiply a whole number of initial batches, at least by one more: ``max(f + 1, floor(f * growth))``."""
    grown = jnp.floor(jnp.asarray(factor, jnp.float32) * jnp.float32(growth))
    return jnp.maximum(factor + 1, jnp.minimum(grown, 2**30).astype(jnp.int32))


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
        if sizes[-1] < maximum:
            factor = max(factor + 1, int(np.float32(factor) * np.float32(growth_factor)))
        sizes.append(min(factor * initial, maximum))
    return sizes


def default_micro_batch_size(initial: int, *, compared: bool) -> int:
    """Return 128 where that divides a batch, else the batch; where parts are compared, half of it at most."""
    size = 128 if initial % 128 == 0 else initial
    if compared and size == initial:
        return next((part for part in range(size // 2, 0, -1) if size % part == 0), 1)
    return size


def check_micro_batch_size(initial: int, size: int, comparing: str | None) -> None:
    """Refuse micro-batches that make up no batch: two at least for the rule that is ``comparing`` them."""
    if size < 1 or initial % size:
        raise ValueError(f"`micro_batch_size` must divide batch_size={initial}, got {size}.")
    if comparing and size == initial:
        raise ValueError(
            f"`micro_batch_size` must be below batch_size={initial} for {comparing}, which compares "
            f"micro-batches, got {size}."
        )


def check_whole_micro_batches(what: str, batch_size: int, size: int) -> None:
    """Refuse a batch that is no whole number of micro-batches: an update would have more examples than said."""
    if batch_size % size:
        raise ValueError(
            f"{what} must be a multiple of micro_batch_size={size}, got {batch_size}; take "
            f"{max(batch_size // size, 1) * size}, or micro_batch_size={math.gcd(batch_size, size)}."
        )


def check_batch_sizes(initial: int, maximum: int, num_examples: int, name: str | None) -> None:
    """Refuse batches of more examples than there are, in a data set of that name."""
    examples = f"the {num_examples} training examples" + (f" of {name}" if name else "")
    if initial > num_examples:
        raise ValueError(f"`batch_size` must be at most {examples}, got {initial}.")
    if maximum > num_examples:
        raise ValueError(
            f"`max_batch_size` must be at most {examples}, got {maximum}; the largest multiple of "
            f"batch_size={initial} that fits is {num_examples // initial * initial}."
        )


def rounded(a: Any, b: Any) -> jax.Array:
    """Multiply two float32 scalars that are not negative, rounded before anything is added.

    A compiler may fuse a product and a sum, which gives other bits than eager code; the maximum stands between.
    """
    return jnp.maximum(jnp.asarray(a, jnp.float32) * jnp.asarray(b, jnp.float32), 0)
