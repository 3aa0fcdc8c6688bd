"""Attacks that follow the gradient of the loss with respect to the inputs."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from hessabs import programs, trees
from hessabs.attacks.checks import check_ball, checked_inputs
from hessabs.attacks.climbing import farthest
from hessabs.attacks.expectation import check_draws, check_keys, expected
from hessabs.attacks.norms import Bounds, Norm, check_norm
from hessabs.inputs import with_inputs
from hessabs.typing import Attack, LossFn, Params


def fgsm(
    epsilon: float,
    *,
    norm: Literal["linf", "l2"] = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    inputs_key: str | int = "image",
    eot: int | None = None,
) -> Attack:
    """Make the fast gradient sign method: one step of size epsilon up the gradient of the loss.

    ``x + epsilon * sign(g)`` for ``norm="linf"``, ``x + epsilon * g / ||g||_2`` for ``norm="l2"`` (the norm of
    each example's gradient). Within the bounds it is the point where a linear loss is highest: an entry stops
    at its bound, and in L2 the others go farther for it. An example whose gradient is zero stays as it is, and
    so does an entry whose gradient is not finite.

    Args:
      epsilon: Size of the perturbation in ``norm``, in the units of the batch (an image in [0, 1]: 0.005 is
        1.3 grey levels of 255), at least 0.
      norm: ``"linf"`` or ``"l2"``.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      eot: Draws of the random numbers of the loss (dropout) over which the gradient averages, or None for the
        loss as it is. See ``hessabs.attacks.expectation``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The loss may be a mean over examples: the scale of
      the gradient does not matter. The random key is not used.

    Raises:
      ValueError: If epsilon is negative or not finite, the norm unknown, or the bounds out of order; when
        called, if the batch has no such inputs, or they are not finite or outside the bounds. Traced values
        cannot raise: under jit, as in a training step, an entry outside the bounds gets no farther out, and
        stays where it is if nothing moves it.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> fgsm(0.25)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Goodfellow et al. (2014), arXiv:1412.6572, section 4; for l2: Shaham et al. (2015), arXiv:1511.05432.
      Differs from the published ABSA code: clipped to given bounds, not to the extremes of the batch. Differs
      from both papers: in L2 what the bounds cut off goes to the other entries.
    """
    check_norm(norm, ("linf", "l2"))
    check_ball(epsilon, norm, bounds)
    check_draws(eot)

    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        inputs = checked_inputs(loss_fn, params, batch, inputs_key, bounds)
        check_keys(eot, loss_fn, batch)
        gradient = jax.grad(lambda x: expected(loss_fn, eot)(params, with_inputs(batch, inputs_key, x)))(inputs)
        perturbed = along(inputs, gradient, epsilon, norm, bounds)
        return with_inputs(batch, inputs_key, perturbed)

    return attack


def along(inputs: Any, ascent: jax.Array, epsilon: float, norm: Norm, bounds: Bounds) -> jax.Array:
    """Move each example within the ball and the bounds to where a linear function of a given ascent is highest.

    Args:
      inputs: Shape (n, ...).
      ascent: The same shape: a gradient, or what replaces it; an entry that is not finite counts as 0.
      epsilon: Size of the perturbation.
      norm: ``"linf"`` or ``"l2"``.
      bounds: (lowest, highest) value of an input, or None.

    Returns:
      The points, like ``inputs``, in the ball and between the bounds.
    """
    return _along(trees.Static((norm, bounds)), epsilon, jnp.asarray(inputs), ascent)


@programs.jit
def _along(where: trees.Static, epsilon: jax.Array, inputs: jax.Array, ascent: jax.Array) -> jax.Array:
    norm, bounds = where.value

    def move(x: jax.Array, g: jax.Array) -> jax.Array:
        return farthest(trees.finite_or_zero(g), x, epsilon, norm, bounds)

    return jax.vmap(move)(inputs, ascent)


def l2grad(
    epsilon: float,
    *,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    inputs_key: str | int = "image",
    eot: int | None = None,
) -> Attack:
    """Make one step of L2 length epsilon up the gradient of the loss: ``fgsm`` with ``norm="l2"``.

    Args:
      epsilon: L2 norm of each example's perturbation, in the units of the batch, at least 0.
      bounds: (lowest, highest) value of an input, or None for no clipping.
      inputs_key: Key, field name or index of the inputs in the batch.
      eot: Draws of the random numbers of the loss (dropout) over which the gradient averages, or None for the
        loss as it is. See ``hessabs.attacks.expectation``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The random key is not used.

    Raises:
      ValueError: As ``fgsm``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.full((1, 2), 0.5), "label": jnp.zeros(1, int)}
      >>> found = l2grad(0.5)(loss, jnp.array([3.0, 4.0]), batch)["image"]
      >>> bool(jnp.allclose(found, jnp.array([[0.8, 0.9]])))
      True

    References:
      Yao et al. (2018), arXiv:1802.08241, L2GRAD; Shaham et al. (2015), arXiv:1511.05432.
    """
    return fgsm(epsilon, norm="l2", bounds=bounds, inputs_key=inputs_key, eot=eot)
