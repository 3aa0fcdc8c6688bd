"""The other classes of each example, and how the way to them looks from where it is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks import losses


def check_num_rivals(num_rivals: int | None, num_classes: int, default: int) -> int:
    """Return how many rival classes to look at.

    Args:
      num_rivals: What the caller asked for, or None.
      num_classes: Classes of the network.
      default: What None means, where there are so many.

    Returns:
      The number, at least 1.

    Raises:
      ValueError: If there are fewer other classes than asked for.
    """
    if (num_rivals is not None and num_rivals > num_classes - 1) or num_classes < 2:
        raise ValueError(
            f"`num_rivals` asks for {num_rivals or 1} other classes, but the network has {num_classes} classes."
        )
    return min(default, num_classes - 1) if num_rivals is None else num_rivals


def top_rivals(logits: jax.Array, labels: jax.Array, num_rivals: int) -> jax.Array:
    """Return the other classes with the largest logits, largest first.

    Args:
      logits: Shape (n, classes).
      labels: Shape (n,), int.
      num_rivals: How many.

    Returns:
      Shape (n, num_rivals), int32.

    Example:
      >>> top_rivals(jnp.array([[3.0, 1.0, 2.0]]), jnp.array([0]), 2)
      Array([[2, 1]], dtype=int32)
    """
    # Not top_k: with the rows on several devices XLA would send all logits to each of them.
    return jnp.argsort(-losses.other_classes(logits, labels), axis=-1)[:, :num_rivals].astype(jnp.int32)


def leads(
    logits_fn: Callable[[jax.Array], jax.Array], inputs: jax.Array, labels: jax.Array | None, rivals: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measure how far each rival's logit is ahead of the label's, and the gradient of that.

    One forward pass, and one backward pass with ``num_rivals`` examples for each one of the batch.

    Args:
      logits_fn: ``logits_fn(inputs) -> (n, classes)``.
      inputs: Shape (n, ...).
      labels: Shape (n,), int; None to compare each rival with the best of all other classes.
      rivals: Shape (n, num_rivals), int.

    Returns:
      ``(logits, leads, gradients)``: (n, classes); ``z_rival - z_label``, (n, num_rivals), below 0 where the
      label wins; its gradient, (n, num_rivals, ...), 0 where it is not finite.
    """
    logits, pull = jax.vjp(lambda x: trees.upcast(logits_fn(x)), inputs)
    one_hot = jax.nn.one_hot(rivals, logits.shape[-1], dtype=logits.dtype)
    if labels is None:
        own = jnp.argmax(jnp.where(one_hot > 0, -jnp.inf, logits[:, None]), axis=-1)
    else:
        own = labels[:, None]
    differences = one_hot - jax.nn.one_hot(own, logits.shape[-1], dtype=logits.dtype)
    (gradients,) = jax.vmap(pull, in_axes=1, out_axes=1)(differences)
    ahead = jnp.take_along_axis(logits, rivals, axis=-1) - jnp.take_along_axis(logits, own, axis=-1)
    return logits, ahead, trees.finite_or_zero(gradients)
