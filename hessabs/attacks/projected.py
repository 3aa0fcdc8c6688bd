"""Projected gradient ascent by any optax transformation: the engine of BIM, PGD, MI-FGSM and Adam-PGD.

BIM, PGD and MI-FGSM repeat ``climbing.ascend``: a step along the gradient, or a sum of gradients, that ends in
the ball around the clean example and between the bounds. Adam-PGD takes the step of an optimiser and projects.
An optax transformation is mapped over examples, so that its state and its norms are each example's own. The
result is each example's best point, the start included: one that has fallen (for losses that carry logits, see
``hessabs.attacks.losses``), else that of the highest loss.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import climbing, norms
from hessabs.attacks.ascent import Ball, Here, Rule, Search, make_attack
from hessabs.attacks.checks import check_positive
from hessabs.typing import Attack

_ROUND_TRAVEL = 5.0  # all steps together in units of epsilon, in L2 and L1


def projected(
    optimizer: optax.GradientTransformation,
    ball: Ball,
    search: Search,
    step_size: float | None,
    *,
    travel: float,
    climbs: bool = True,
) -> Attack:
    """Make an attack of an optax transformation.

    Without a step size all steps together are ``travel`` epsilons, in L-infinity. What the optimizer returns is
    a direction that ``climbs`` by the steepest ascent of the norm; else the step itself, of what would minimise
    minus the loss.
    """
    check_positive("step_size", step_size)
    steps_of = optax.GradientTransformation(*map(trees.as_partial, optimizer))
    epsilon, norm, _ = ball.where
    steps = max(search.steps, 1)
    # The length of the first step, and by how much each one is shorter than the one before.
    if step_size is not None:
        sizes = step_size, 0.0
    elif norm == "linf":
        sizes = travel * epsilon / steps, 0.0
    else:
        first = 2 * _ROUND_TRAVEL * epsilon / (steps + 1)
        sizes = first, first / steps
    move = Partial(_climb if climbs else _follow, steps_of, ball, sizes)
    return make_attack(Rule(steps_of.init, move), ball, search)


def _climb(optimizer: Any, ball: Ball, sizes: tuple[Any, Any], here: Here, state: Any) -> tuple[jax.Array, Any]:
    direction, state = optimizer.update(here.gradient, state, here.point)
    length = sizes[0] - sizes[1] * here.i
    return climbing.ascend(here.point, direction, length, here.inputs, *ball.where), state


def _follow(
    optimizer: Any, ball: Ball, sizes: tuple[Any, Any], here: Here, state: Any
) -> tuple[jax.Array, Any]:
    gradient = here.gradient
    if ball.where[1] != "linf":
        # An optimiser that scales entries would go by its scales where the ball is in the way. This vanishes
        # there.
        way = climbing.farthest(gradient, here.inputs, *ball.where) - here.point
        gradient = jnp.where(jnp.any(gradient != 0), way, 0)
    updates, state = optimizer.update(-gradient, state, here.point)
    length = sizes[0] - sizes[1] * here.i
    return norms.restrict(here.point + length * updates, here.inputs, *ball.where), state
