"""Projected gradient ascent by any optax transformation: what BIM, PGD, MI-FGSM and Adam-PGD share.

Each attack repeats ``x <- P(x + step_size * direction(g))`` with P the projection onto the ball around the
clean example and then onto the bounds. The direction is an optax transformation mapped over examples, so that
its state and its norms are each example's own. In all of them:

* The result is each example's best point, the start included: one that has fallen (for losses that carry
  logits, see ``hessabs.attacks.losses``), else that of the highest loss.
* ``early_exit``: an example that has fallen stops there. Set it to False to go on to higher losses, as robust
  training wants.
* epsilon, step_size and bounds are in the units of the batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import norms
from hessabs.attacks.ascent import Ball, Rule, make_attack
from hessabs.attacks.checks import check_positive
from hessabs.attacks.norms import Bounds, Norm
from hessabs.curvature.loops import Loop
from hessabs.typing import Attack


def projected(
    optimizer: optax.GradientTransformation,
    epsilon: float,
    norm: Norm,
    step_size: float | None,
    *,
    travel: float,
    steps: int,
    restarts: int = 1,
    random_start: bool = False,
    bounds: Bounds,
    inputs_key: str | int,
    early_exit: bool,
    loop: Loop | None,
) -> Attack:
    """Make an attack of an optax transformation.

    Args:
      optimizer: The direction: what would minimise minus the loss.
      epsilon: Radius of the ball in ``norm``.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      step_size: Factor on the updates of the optimizer, or None.
      travel: All steps together in units of epsilon, where ``step_size`` is None.
      steps: Steps of each restart.
      restarts: Random starts.
      random_start: Start uniformly in the ball.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Where the inputs are.
      early_exit: Stop each example where it falls.
      loop: ``"host"``, ``"device"`` or None.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``.

    Raises:
      ValueError: If an argument is out of range.
    """
    norms.check_norm(norm)
    check_positive("step_size", step_size)
    size = travel * epsilon / max(steps, 1) if step_size is None else step_size
    ball = Ball(epsilon, trees.Static(norm), trees.Static(bounds))
    static = trees.Static(optimizer)
    rule = Rule(Partial(_init, static), Partial(_move, static, ball, size))
    return make_attack(
        rule,
        ball,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        early_exit=early_exit,
        inputs_key=inputs_key,
        loop=loop,
    )


@functools.cache  # so that attacks that differ in numbers alone share their compilations
def steepest(norm: Norm) -> optax.GradientTransformation:
    """Return the transformation to minus the steepest direction of a norm.

    Args:
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
      An optax transformation of one input.
    """
    return optax.stateless(lambda gradient, params: -norms.steepest(gradient, norm))


def _init(optimizer: trees.Static, inputs: jax.Array, point: jax.Array) -> Any:
    del inputs
    return optimizer.value.init(point)


def _move(
    optimizer: trees.Static,
    ball: Ball,
    step_size: jax.Array,
    inputs: jax.Array,
    point: jax.Array,
    state: Any,
    value: jax.Array,
    gradient: jax.Array,
    i: jax.Array,
) -> tuple[jax.Array, Any]:
    del value, i
    if ball.norm.value == "l1" and ball.bounds.value is not None:  # few entries move: let them be ones that can
        low, high = ball.bounds.value
        stuck = ((point <= low) & (gradient < 0)) | ((point >= high) & (gradient > 0))
        gradient = jnp.where(stuck, 0, gradient)
    updates, state = optimizer.value.update(-gradient, state, point)
    moved = point + step_size * updates
    return norms.restrict(moved, inputs, ball.epsilon, ball.norm.value, ball.bounds.value), state
