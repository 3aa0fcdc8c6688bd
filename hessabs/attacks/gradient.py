"""Attacks of one step along the gradient of the loss with respect to the inputs."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks.checks import check_ball, checked_inputs
from hessabs.attacks.climbing import along
from hessabs.attacks.expectation import check_draws, check_keys, expected
from hessabs.attacks.norms import Bounds
from hessabs.inputs import with_inputs
from hessabs.typing import Attack, LossFn, Params


def fgsm(
    epsilon: float,
    *,
    norm: Literal["linf", "l2"] = "linf",
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    eot: int | None = None,
) -> Attack:
    """Make the fast gradient sign method: one step of size epsilon up the gradient of the loss.

    ``x + epsilon * sign(g)`` for ``norm="linf"``, ``x + epsilon * g / ||g||_2`` for ``norm="l2"`` (the norm of
    each example's gradient). Within the bounds it is the point where a linear loss is highest: an entry stops
    at its bound, and in L2 the others go farther for it. An example whose gradient is zero stays as it is, and
    so does an entry whose gradient is not finite.

    Args:
      epsilon: Size of the perturbation in ``norm``, at least 0.
      norm: ``"linf"`` or ``"l2"``.
      bounds, inputs_key, eot: As in every attack (``hessabs.attacks``).

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The loss may be a mean over examples: the scale of
      the gradient does not matter. No random key.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described.

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
    check_ball(epsilon, norm, bounds, ("linf", "l2"))
    check_draws(eot)

    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        inputs = checked_inputs(loss_fn, params, batch, inputs_key, bounds)
        check_keys(eot, loss_fn, batch)
        gradient = jax.grad(lambda x: expected(loss_fn, eot)(params, with_inputs(batch, inputs_key, x)))(inputs)
        perturbed = along(jnp.asarray(inputs), gradient, epsilon, trees.Static((norm, bounds)))
        return with_inputs(batch, inputs_key, perturbed)

    return attack


def l2grad(
    epsilon: float,
    *,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    eot: int | None = None,
) -> Attack:
    """Make one step of L2 length epsilon up the gradient of the loss: ``fgsm`` with ``norm="l2"``.

    Args:
      epsilon: L2 norm of each example's perturbation, at least 0.
      bounds, inputs_key, eot: As in every attack (``hessabs.attacks``).

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

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
