"""Projected gradient ascent by any optax transformation: what BIM, PGD, MI-FGSM and Adam-PGD share.

BIM, PGD and MI-FGSM repeat ``climbing.ascend``: a step along the gradient, or a sum of gradients, that ends in
the ball around the clean example and between the bounds. Adam-PGD takes the step of an optimiser and projects.
An optax transformation is mapped over examples, so that its state and its norms are each example's own. In all:

* The result is each example's best point, the start included: one that has fallen (for losses that carry
  logits, see ``hessabs.attacks.losses``), else that of the highest loss.
* ``early_exit``: an example that has fallen stops there. Set it to False to go on to higher losses, as robust
  training wants.
* epsilon, step_size and bounds are in the units of the batch.
* A step size that is given is that of every step, as in the papers. The one chosen here is constant in
  L-infinity. In L2 and L1 the steps shorten, all by the same amount, for only short ones end near the optimum
  of a ball that is round or pointed, and long ones get there.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import climbing, norms
from hessabs.attacks.ascent import Ball, Rule, make_attack
from hessabs.attacks.checks import check_positive
from hessabs.attacks.norms import Bounds, Norm
from hessabs.loops import Loop
from hessabs.typing import Attack

GRADIENT = optax.identity()
"""The direction of BIM and PGD."""
_ROUND_TRAVEL = 5.0  # all steps together in units of epsilon, in L2 and L1


def projected(
    optimizer: optax.GradientTransformation,
    epsilon: float,
    norm: Norm,
    step_size: float | None,
    *,
    climbs: bool,
    travel: float,
    steps: int,
    restarts: int = 1,
    random_start: bool = False,
    bounds: Bounds,
    inputs_key: str | int,
    early_exit: bool,
    eot: int | None,
    loop: Loop | None,
) -> Attack:
    """Make an attack of an optax transformation.

    Args:
      optimizer: What makes a direction of a gradient, or, unless ``climbs``, a step: what would minimise minus
        the loss.
      epsilon: Radius of the ball in ``norm``.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      step_size: Length of a step, or factor on those of the optimizer; or None.
      climbs: Go along the steepest ascent of the norm by what ``optimizer`` returns; else add what it returns.
      travel: All steps together in units of epsilon, in L-infinity where ``step_size`` is None.
      steps: Steps of each restart.
      restarts: Random starts.
      random_start: Start uniformly in the ball.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Where the inputs are.
      early_exit: Stop each example where it falls.
      eot: Draws of the random numbers of the loss at each step, or None.
      loop: ``"host"``, ``"device"`` or None.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``.

    Raises:
      ValueError: If an argument is out of range.
    """
    norms.check_norm(norm)
    check_positive("step_size", step_size)
    ball = Ball(epsilon, trees.Static(norm), trees.Static(bounds))
    steps_of = optax.GradientTransformation(*map(trees.as_partial, optimizer))
    sizes = _sizes(epsilon, norm, step_size, travel, max(steps, 1))
    rule = Rule(Partial(_init, steps_of), Partial(_climb if climbs else _follow, steps_of, ball, sizes))
    return make_attack(
        rule,
        ball,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        early_exit=early_exit,
        eot=eot,
        inputs_key=inputs_key,
        loop=loop,
    )


def _sizes(
    epsilon: float, norm: Norm, step_size: float | None, travel: float, steps: int
) -> tuple[float, float]:
    # The length of the first step, and by how much each one is shorter than the one before.
    if step_size is not None:
        return step_size, 0.0
    if norm == "linf":
        return travel * epsilon / steps, 0.0
    first = 2 * _ROUND_TRAVEL * epsilon / (steps + 1)
    return first, first / steps


def _init(optimizer: optax.GradientTransformation, inputs: jax.Array, point: jax.Array) -> Any:
    del inputs
    return optimizer.init(point)


def _climb(
    optimizer: optax.GradientTransformation,
    ball: Ball,
    sizes: tuple[jax.Array, jax.Array],
    inputs: jax.Array,
    point: jax.Array,
    state: Any,
    value: jax.Array,
    gradient: jax.Array,
    i: jax.Array,
) -> tuple[jax.Array, Any]:
    del value
    direction, state = optimizer.update(gradient, state, point)
    length = sizes[0] - sizes[1] * i
    where = (inputs, ball.epsilon, ball.norm.value, ball.bounds.value)
    return climbing.ascend(point, direction, length, *where), state


def _follow(
    optimizer: optax.GradientTransformation,
    ball: Ball,
    sizes: tuple[jax.Array, jax.Array],
    inputs: jax.Array,
    point: jax.Array,
    state: Any,
    value: jax.Array,
    gradient: jax.Array,
    i: jax.Array,
) -> tuple[jax.Array, Any]:
    del value
    where = (inputs, ball.epsilon, ball.norm.value, ball.bounds.value)
    if ball.norm.value != "linf":
        # An optimiser that scales entries would go by its scales where the ball is in the way. This vanishes
        # there.
        gradient = jnp.where(jnp.any(gradient != 0), climbing.farthest(gradient, *where) - point, 0)
    updates, state = optimizer.update(-gradient, state, point)
    return norms.restrict(point + (sizes[0] - sizes[1] * i) * updates, *where), state
