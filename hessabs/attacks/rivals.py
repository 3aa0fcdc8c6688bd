"""The other classes of each example, and how the way to them looks from where it is."""

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks import checks
from hessabs.attacks.losses.carrying import LogitsFn
from hessabs.attacks.losses.criteria import other_classes
from hessabs.attacks.norms import Bounds, Norm
from hessabs.checks import count, number, require_one_of
from hessabs.typing import Params

_FEW = 9  # rivals to look at where nobody says how many


def top_rivals(logits: jax.Array, labels: jax.Array, num_rivals: int | None) -> jax.Array:
    """Return the other classes with the largest logits, (n, num_rivals) int32, largest first.

    None stands for 9, or all that there are; more than that raise.
    """
    num_classes = logits.shape[-1]
    if (num_rivals is not None and num_rivals > num_classes - 1) or num_classes < 2:
        raise ValueError(
            f"`num_rivals` asks for {num_rivals or 1} other classes, but the network has {num_classes} classes."
        )
    # Not top_k: with the rows on several devices XLA would send all logits to each of them.
    order = jnp.argsort(-other_classes(logits, labels), axis=-1).astype(jnp.int32)
    return order[:, : min(_FEW, num_classes - 1) if num_rivals is None else num_rivals]


def checked_walk(
    norm: Norm, steps: int, num_rivals: int | None, overshoot: float, bounds: Bounds
) -> tuple[int, int | None, float, Bounds]:
    """Return all but the norm of a walk to the boundary of a rival, or raise unless these are its options."""
    require_one_of(("l2", "linf"), norm=norm)
    num_rivals = None if num_rivals is None else count(num_rivals=num_rivals)
    overshoot = number("be at least 0 and finite", overshoot=overshoot)
    return count(steps=steps), num_rivals, overshoot, checks.checked_bounds(bounds)


def leads(
    logits_fn: LogitsFn, params: Params, inputs: jax.Array, labels: jax.Array | None, rivals: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measure how far each rival's logit is ahead of the label's, and the gradient of that.

    One forward pass, and one backward pass with ``num_rivals`` examples for each one of the batch.

    Returns:
      ``(logits, leads, gradients)``: (n, classes), as the network gives them; ``z_rival - z_label``, (n,
      num_rivals), below 0 where the label wins (the best of all other classes where labels are None); its
      gradient, (n, num_rivals, ...), 0 where it is not finite.
    """
    given, pull = jax.vjp(lambda x: logits_fn(params, x), inputs)
    logits = trees.upcast(given)
    one_hot = jax.nn.one_hot(rivals, logits.shape[-1], dtype=logits.dtype)
    if labels is None:
        own = jnp.argmax(jnp.where(one_hot > 0, -jnp.inf, logits[:, None]), axis=-1)
    else:
        own = labels[:, None]
    differences = one_hot - jax.nn.one_hot(own, logits.shape[-1], dtype=logits.dtype)
    (gradients,) = jax.vmap(pull, in_axes=1, out_axes=1)(differences.astype(given.dtype))
    ahead = jnp.take_along_axis(logits, rivals, axis=-1) - jnp.take_along_axis(logits, own, axis=-1)
    return given, ahead, trees.finite_or_zero(gradients)
