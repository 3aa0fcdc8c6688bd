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


def take_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logit of one class a row.

    Args:
      logits: Shape (n, classes).
      classes: Shape (n,), int.

    Returns:
      Shape (n,).
    """
    return jnp.take_along_axis(logits, classes[:, None].astype(jnp.int32), axis=-1)[:, 0]
