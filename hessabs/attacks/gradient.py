"""Attacks that follow the gradient of the loss with respect to the inputs."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks.inputs import get_inputs, with_inputs
from hessabs.typing import Attack, LossFn, Params

Norm = Literal["linf", "l2"]


def fgsm(
    epsilon: float,
    *,
    norm: Norm = "linf",
    bounds: tuple[float, float] | None = (0.0, 1.0),
    inputs_key: str | int = "image",
) -> Attack:
    """Make the fast gradient sign method: one step of size epsilon up the gradient of the loss.

    ``x + epsilon * sign(g)`` for ``norm="linf"``, ``x + epsilon * g / ||g||_2`` for ``norm="l2"`` (the norm of
    each example's gradient), then clipped to the bounds. An example whose gradient is zero stays as it is.

    Args:
      epsilon: Size of the perturbation in ``norm``, in the units of the batch (an image in [0, 1]: 0.005 is
        1.3 grey levels of 255), at least 0.
      norm: ``"linf"`` or ``"l2"``.
      bounds: (lowest, highest) value of an input, or None for no clipping.
      inputs_key: Key, field name or index of the inputs in the batch.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The loss may be a mean over examples: the scale of
      the gradient does not matter. The random key is not used.

    Raises:
      ValueError: If epsilon is negative or not finite, the norm unknown, or the bounds out of order; when
        called, if the batch has no such inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> fgsm(0.25)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Goodfellow et al. (2014), arXiv:1412.6572, section 4; for l2: Shaham et al. (2015), arXiv:1511.05432.
      Differs from the published ABSA code: clipped to given bounds, not to the extremes of the batch.
    """
    if not (0 <= epsilon < float("inf")):
        raise ValueError(f"`epsilon` must be finite and at least 0, got {epsilon}.")
    if norm not in get_args(Norm):
        raise ValueError(f"`norm` must be one of {list(get_args(Norm))}, got {norm!r}.")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (lowest, highest), got {bounds}.")

    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        inputs = get_inputs(batch, inputs_key)
        gradient = jax.grad(lambda x: loss_fn(params, with_inputs(batch, inputs_key, x)))(inputs)
        direction = jnp.sign(gradient) if norm == "linf" else _per_example_unit(gradient)
        perturbed = inputs + epsilon * direction.astype(inputs.dtype)
        if bounds is not None:
            perturbed = jnp.clip(perturbed, *bounds)
        return with_inputs(batch, inputs_key, perturbed.astype(inputs.dtype))

    return attack


def _per_example_unit(gradient: jax.Array) -> jax.Array:
    # The largest entry first: the gradient of a mean over many confident examples is tiny.
    flat = gradient.reshape(gradient.shape[0], -1)
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    flat = flat * trees.safe_inverse(jnp.max(jnp.abs(flat), axis=1, keepdims=True))
    flat = flat * trees.safe_inverse(jnp.linalg.norm(flat, axis=1, keepdims=True))
    return flat.reshape(gradient.shape)
