"""Projected ascent with Adam, or any other optax optimiser."""

import functools

import optax

from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.projected import projected
from hessabs.loops import Loop
from hessabs.typing import Attack


def adam_pgd(
    epsilon: float,
    *,
    norm: Norm = "linf",
    optimizer: optax.GradientTransformation | None = None,
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
    """Make projected ascent whose steps come from Adam, or from any other optax optimiser.

    In L2 and L1 the optimizer is given the way to the point of the ball, between the bounds, where the
    linearised loss is highest, in place of the gradient: one that scales entries, as Adam does, would otherwise
    end where its scales lead.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      optimizer: What ``optax`` would minimise minus the loss with; mapped over examples. ``optax.adam(1.0)`` by
        default. Pass the same object again to compile nothing again.
      steps: Steps of each restart, at least 1.
      step_size: Factor on the updates of the optimizer, above 0, the same for every step. The default suits an
        optimizer whose updates have entries of about 1, as those of ``adam(1.0)``: 2.5 epsilon / steps in
        L-infinity; in L2 and L1 factors that shrink evenly, 5 epsilon in all.
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
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> attack = adam_pgd(0.25, optimizer=optax.rmsprop(1.0), steps=10, random_start=False)
      >>> attack(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Kingma and Ba (2014), arXiv:1412.6980; as an attack, Uesato et al. (2018), arXiv:1802.05666, section 3.
    """
    optimizer = _adam() if optimizer is None else optimizer
    return projected(
        optimizer,
        epsilon,
        norm,
        step_size,
        climbs=False,
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


@functools.cache
def _adam() -> optax.GradientTransformation:
    return optax.adam(1.0)
