"""The basic iterative method: steepest ascent from the example itself."""

from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.projected import GRADIENT, projected
from hessabs.loops import Loop
from hessabs.typing import Attack


def bim(
    epsilon: float,
    *,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    early_exit: bool = True,
    eot: int | None = None,
    loop: Loop | None = None,
) -> Attack:
    """Make the basic iterative method (iterated FGSM; FGSM-10 with the defaults): PGD from the example itself.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      steps: Gradient steps, at least 1.
      step_size: Length of every step in ``norm``, above 0. By default epsilon / steps in L-infinity; in L2 and
        L1 steps that shorten evenly, 5 epsilon in all, and end at the optimum of a linear loss.
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
      >>> bim(0.25, steps=2)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Kurakin et al. (2016), arXiv:1607.02533, section 2.2; FGSM-10 of Yao et al. (2018), arXiv:1802.08241, with
      the step size that the paper leaves open.
    """
    return projected(
        GRADIENT,
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
