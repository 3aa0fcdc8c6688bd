"""Logits by class: arrays of shape (n, classes), a row an example."""

import jax
import jax.numpy as jnp


def other_classes(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logits with that of one class a row put to minus infinity.

    Args:
      logits: Shape (n, classes).
      classes: Shape (n,), int.

    Returns:
      Shape (n, classes).
    """
    return jnp.where(jax.nn.one_hot(classes, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def usable(logits: jax.Array) -> jax.Array:
    """Tell which rows of logits say something: no NaN, and the largest is finite.

    Args:
      logits: Shape (n, classes). Minus infinity is the logit of a class that is masked out.

    Returns:
      Shape (n,), bool.

    Example:
      >>> usable(jnp.array([[0.0, -jnp.inf], [0.0, jnp.nan], [0.0, jnp.inf]])).tolist()
      [True, False, False]
    """
    return jnp.isfinite(jnp.max(logits, axis=-1))


def take_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logit of one class a row.

    Args:
      logits: Shape (n, classes).
      classes: Shape (n,), int.

    Returns:
      Shape (n,); nan where there is no such class.
    """
    # Not indexed: with the rows on several devices XLA would send all logits to each of them.
    here = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    taken = jnp.sum(jnp.where(here, logits, 0), axis=-1)
    return jnp.where(jnp.any(here, axis=-1), taken, jnp.nan)
