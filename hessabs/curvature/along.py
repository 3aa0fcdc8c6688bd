"""Curvature along a direction: what an optimiser's step, whatever made it, meets on its way.

One product and one gradient say it, without an eigenvalue and for any optimiser. On the quadratic that touches
the loss, a step s changes it by ``g's + s'Hs / 2``: with ``ratio = s'Hs / -g's``, the loss is least along the
step at ratio 1 and back where it was at ratio 2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs import trees
from hessabs.curvature.losses import scalar, without_aux
from hessabs.curvature.passes import Batches, one_pass
from hessabs.typing import Batch, LossFn, Params


class AlongStep(NamedTuple):
    """What a step meets; all of shape (), at least float32."""

    sharpness: jax.Array  # s'Hs / s's: the curvature in this direction; at most the top eigenvalue
    slope: jax.Array  # g's: below 0 where the step goes down
    curvature: jax.Array  # s'Hs
    ratio: jax.Array  # s'Hs / -g's; inf where a step goes not down, on ground that bends up


def sharpness_along(
    loss_fn: LossFn, params: Params, batch: Batch, step: Params, *, has_aux: bool = False
) -> AlongStep:
    """Measure slope and curvature of a loss along a step, for the cost of about two gradients.

    For the step that an optimiser makes (its update, with the learning rate in it) ``ratio`` is the one number
    that says whether the rate is too large: far below 1 it can grow, around 1 to 2 it is at the edge, for SGD
    with momentum, Adam and Muon alike. Take a batch that the step was not made of, else the noise that the step
    follows looks like slope; average ``curvature`` and ``slope`` over steps before they are divided.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: Where the step begins: a pytree of floating-point arrays.
      batch: What the loss takes.
      step: A pytree like ``params``, in its dtypes; of any length but for ``slope``, ``curvature``, ``ratio``.
      has_aux: Whether the loss returns ``(loss, aux)``.

    Returns:
      An ``AlongStep``. A step of zero has sharpness and ratio 0.

    Raises:
      ValueError: If ``step`` does not look like ``params``, or the loss is no scalar.

    Example:
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)  # H = diag(1, 4), g = H w
      >>> x, w = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 1.0])
      >>> found = sharpness_along(loss, w, x, -0.25 * jax.grad(loss)(w, x))
      >>> [round(float(value), 4) for value in found]
      [3.8235, -4.25, 4.0625, 0.9559]

    References:
      Roulet et al. (2024), arXiv:2407.06183: a rate of ``s max(-g'u, 0) / |u'Hu|``, u the update.
    """
    trees.check_floating(params, "params")
    trees.check_like(step, params, "step", "params", dtypes=True)
    function = without_aux(loss_fn, has_aux)
    # Along a step of a good length, a power of two times as long: squares of others under- or overflow.
    exponent = jnp.frexp(optax.tree.norm(step, ord=jnp.inf))[1]
    step = jax.tree.map(lambda x: jnp.ldexp(x, -exponent), step)
    gradient, product = jax.jvp(jax.grad(lambda p: scalar(function, p, batch)), (params,), (step,))
    square, slope, curvature = trees.vdot(step, step), trees.vdot(gradient, step), trees.vdot(step, product)
    down = slope < 0
    ratio = jnp.ldexp(curvature / jnp.where(down, -slope, 1), exponent)
    ratio = jnp.where(down, ratio, jnp.where(curvature > 0, jnp.inf, 0))
    ratio = jnp.where(jnp.isnan(slope) | jnp.isnan(curvature), jnp.nan, ratio)
    sharpness = curvature * trees.safe_inverse(square)
    return AlongStep(sharpness, jnp.ldexp(slope, exponent), jnp.ldexp(curvature, 2 * exponent), ratio)


class BatchSharpness(NamedTuple):
    """The curvature that mini-batches meet along their own gradients; of shape (), at least float32."""

    value: jax.Array  # the mean over batches
    standard_error: jax.Array  # of it; NaN for one batch


def batch_sharpness(
    loss_fn: LossFn, params: Params, batches: Batches, *, has_aux: bool = False
) -> BatchSharpness:
    """Average ``g'Hg / g'g`` over mini-batches, gradient and Hessian of the same batch.

    For SGD this is what settles at ``2 / lr``, while the top eigenvalue of the full Hessian stays below; with
    momentum b, at ``2 (1 - b) / lr`` for small batches and ``2 (1 + b) / lr`` for large ones.

    Args:
      loss_fn, params, has_aux: As in ``sharpness_along``.
      batches: Mini-batches of the size that the optimiser uses, or a function that opens them; ten or more say
        how well the mean is known.

    Raises:
      ValueError: If there is no batch, or as in ``sharpness_along``.

    Example:
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> batches = [jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])]  # H = diag(1, 0), diag(0, 4)
      >>> [float(x) for x in batch_sharpness(loss, jnp.ones(2), batches)]
      [2.5, 1.5]

    References:
      Andreyev, Beneventano (2024), arXiv:2412.20553; with momentum arXiv:2604.14108.
    """
    function = without_aux(loss_fn, has_aux)

    @jax.jit
    def of_batch(params: Params, batch: Batch) -> jax.Array:
        gradient = jax.grad(lambda p: scalar(function, p, batch))(params)
        return sharpness_along(function, params, batch, gradient).sharpness

    trees.check_floating(params, "params")
    found: list[Any] = [of_batch(params, batch) for batch in one_pass(batches)]
    values = jnp.stack(found)
    count = len(found)
    error = jnp.std(values, ddof=1) / jnp.sqrt(count) if count > 1 else jnp.full_like(values[0], jnp.nan)
    return BatchSharpness(jnp.mean(values), error)
