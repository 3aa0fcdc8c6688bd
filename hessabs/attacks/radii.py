"""The numbers that bring one perturbation to the radius of a ball, where the size of each entry is capped."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import trees

_NEWTON_STEPS = 12  # each fills all entries that the last factor brought to their caps: few are ever needed


def stretch(unit: jax.Array, epsilon: Any, caps: Any, most: Any) -> jax.Array:
    """Scale a perturbation to an L2 norm, where caps let it.

    Args:
      unit: Sizes of its entries, in [0, 1].
      epsilon: The norm, a scalar.
      caps: The largest size of each entry, or None.
      most: The largest factor.

    Returns:
      ``min(t unit, caps)`` with the t at which its norm is epsilon, at most ``most``. Newton's iterations come
      from below, so one that has not converged gives a smaller norm.
    """
    if caps is None:
        return jnp.minimum(epsilon * trees.safe_inverse(trees.normalize(unit)[1]), most) * unit

    def newton(_: Any, t: jax.Array) -> jax.Array:
        full = t * unit >= caps
        left = jnp.maximum(epsilon**2 - jnp.sum(jnp.where(full, caps, 0) ** 2), 0)
        return jnp.maximum(t, jnp.sqrt(left * trees.safe_inverse(jnp.sum(jnp.where(full, 0, unit) ** 2))))

    first = newton(0, jnp.zeros((), unit.dtype))  # unlike 0 it varies over devices as the perturbation does
    t = jax.lax.fori_loop(1, _NEWTON_STEPS, newton, first)
    return jnp.minimum(jnp.minimum(t, most) * unit, caps)


def threshold(lengths: jax.Array, caps: jax.Array, epsilon: Any) -> jax.Array:
    """Find how much to take off each entry of a perturbation to bring its L1 norm down.

    Args:
      lengths: Sizes of its entries, a vector.
      caps: The largest size of each entry, at most ``lengths``.
      epsilon: The norm, a scalar.

    Returns:
      The t at which ``sum(clip(lengths - t, 0, caps))`` is epsilon; 0 where that sum is smaller at once.
    """
    # As t falls the sum grows by 1 for each entry between lengths and lengths - caps: it is linear between
    # these.
    places = jnp.concatenate([lengths, lengths - caps])
    turns = jnp.concatenate([jnp.ones_like(lengths), -jnp.ones_like(lengths)])
    falling, turns = jax.lax.sort((-places, turns), num_keys=1)
    places = -falling
    slopes = jnp.cumsum(turns)
    following = jnp.append(places[1:], 0)
    sums = jnp.cumsum(slopes * (places - following))  # at `following`
    at = jnp.argmax(sums >= epsilon)
    found = following[at] + (sums[at] - epsilon) * trees.safe_inverse(slopes[at])
    return jnp.where(sums[-1] > epsilon, jnp.maximum(found, 0), 0)


def shrink(length: jax.Array, epsilon: Any) -> jax.Array:
    """Return the factor that brings a length down to epsilon; 1 where it is no longer.

    Args:
      length: A scalar.
      epsilon: A scalar.

    Returns:
      A scalar.
    """
    return jnp.where(length > epsilon, epsilon * trees.safe_inverse(length), 1)
