"""Projected gradient descent: steepest ascent from random points of the ball."""

from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.projected import GRADIENT, projected
from hessabs.loops import Loop
from hessabs.typing import Attack


def pgd(
    epsilon: float,
    *,
    norm: Norm = "linf",
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    early_exit: bool = True,
    eot: int | None = None,
    loop: Loop | None = None,
) -> Attack:
    """Make projected gradient descent, from random points of the ball.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``. In L1 a step goes towards the point where the loss would be
        highest if it were linear: as few entries as fill the ball, each up to its bound.
      steps: Gradient steps of each restart, at least 1.
      step_size: Length of every step in ``norm``, above 0. By default 2.5 epsilon / steps in L-infinity; in L2
        and L1 steps that shorten evenly, 5 epsilon in all, and end at the optimum of a linear loss.
      restarts: Random starts, at least 1; the result is the best of all.
      random_start: Start uniformly in the ball; otherwise at the example.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      early_exit: Stop each example, all its restarts, where it falls.
      eot: Draws of the random numbers of the loss (dropout) over which each step averages, or None for the loss
        as it is. See ``hessabs.attacks.expectation``.
      loop: ``"host"``, ``"device"``, or None to choose; see ``hessabs.loops``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described or there is no
        key for random starts.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> pgd(0.25, restarts=2)(loss, jnp.array([2.0, -1.0]), batch, jax.random.key(0))["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Madry et al. (2017), arXiv:1706.06083, section 2.1; for L1, ``hessabs.attacks.climbing.ascend``.
      Differs from the paper: in L2 the steps shorten unless ``step_size`` is given. Steps of one length, 2.5
      epsilon in all, end 1 to 2 % below the highest linear loss.
    """
    return projected(
        GRADIENT,
        epsilon,
        norm,
        step_size,
        climbs=True,
        travel=2.5,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        bounds=bounds,
        inputs_key=inputs_key,
        early_exit=early_exit,
        eot=eot,
        loop=loop,
    )
