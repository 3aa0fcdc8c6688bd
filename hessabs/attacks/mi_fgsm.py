"""The momentum iterative method: ascent along a sum of normalised gradients."""

import functools
from typing import Any

import jax
import optax

from hessabs import trees
from hessabs.attacks import norms
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.projected import projected
from hessabs.loops import Loop
from hessabs.typing import Attack


def mi_fgsm(
    epsilon: float,
    *,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    momentum: float = 1.0,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    early_exit: bool = True,
    eot: int | None = None,
    loop: Loop | None = None,
) -> Attack:
    """Make the momentum iterative method: steps along a sum of gradients, each divided by its L1 norm.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      steps: Gradient steps, at least 1.
      step_size: Length of every step in ``norm``, above 0. By default epsilon / steps in L-infinity; in L2 and
        L1 steps that shorten evenly, 5 epsilon in all, and end at the optimum of a linear loss.
      momentum: Weight of the sum so far, at least 0.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      early_exit: Stop each example where it falls.
      eot: Draws of the random numbers of the loss (dropout) over which each step averages, or None for the loss
        as it is. See ``hessabs.attacks.expectation``.
      loop: ``"host"``, ``"device"``, or None to choose; see ``hessabs.loops``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The random key is not used.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> mi_fgsm(0.25, steps=2)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Dong et al. (2017), arXiv:1710.06081, Algorithm 1.
    """
    if not (0 <= momentum < float("inf")):
        raise ValueError(f"`momentum` must be finite and at least 0, got {momentum}.")
    return projected(
        _momentum(momentum),
        epsilon,
        norm,
        step_size,
        climbs=True,
        travel=1.0,
        steps=steps,
        bounds=bounds,
        inputs_key=inputs_key,
        early_exit=early_exit,
        eot=eot,
        loop=loop,
    )


@functools.cache
def _momentum(momentum: float) -> optax.GradientTransformation:
    def normalize(gradient: jax.Array, params: Any) -> jax.Array:
        # The largest entry first, so that the sum over a tiny gradient does not vanish.
        largest = norms.size(gradient, "linf")
        gradient = gradient * trees.safe_inverse(largest)
        return gradient * trees.safe_inverse(norms.size(gradient, "l1"))

    return optax.chain(optax.stateless(normalize), optax.trace(momentum))
