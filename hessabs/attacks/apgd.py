"""Auto-PGD: projected ascent with momentum whose step halves where it no longer helps."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs.attacks import norms
from hessabs.attacks.ascent import Here, Rule, checked_search, make_attack
from hessabs.attacks.checks import checked_ball
from hessabs.attacks.norms import Ball, Bounds, Norm
from hessabs.loops import Loop
from hessabs.typing import Attack

_INERTIA = 0.75  # alpha of the paper
_ENOUGH_RISES = 0.75  # rho of the paper


class _Seen(NamedTuple):
    point: jax.Array  # like an input
    value: jax.Array  # shape ()
    gradient: jax.Array  # like an input


class _State(NamedTuple):
    previous: jax.Array  # like an input: the point before this one
    step_size: jax.Array  # shape ()
    best: _Seen
    last_value: jax.Array  # shape ()
    rises: jax.Array  # shape (), int32: steps since the checkpoint that raised the loss
    checked_value: jax.Array  # shape (): the best one at the checkpoint
    halved: jax.Array  # shape (), bool: whether the step was halved there


def apgd(
    epsilon: float,
    *,
    norm: Norm = "linf",
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    early_exit: bool = True,
    eot: int | None = None,
    loop: Loop | None = None,
) -> Attack:
    """Make Auto-PGD, which needs no step size.

    The step starts at 2 epsilon. At checkpoints, which come closer and closer, it is halved and the search goes
    on from the best point if fewer than 75 % of the steps since the last one raised the loss, or if neither the
    step nor the best loss changed. Choose the loss by what is passed to the attack: cross-entropy or the
    difference-of-logits ratio (``attacks.losses``), or any other.

    Args:
      epsilon, norm, steps, restarts, random_start, bounds, inputs_key, early_exit, eot, loop: As in every
        attack (``hessabs.attacks``). The checkpoints depend on the number of steps.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> apgd(0.25, steps=5)(loss, jnp.array([2.0, -1.0]), batch, jax.random.key(0))["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Croce and Hein (2020), arXiv:2003.01690, Algorithm 1 and section 3.
      Differs from the paper: after a return to the best point the first step has no inertia, for the point
      before it belongs to another path. For L1 see Croce and Hein (2021), arXiv:2103.01208, which this follows
      in projecting onto ball and bounds together; the steps are those of ``hessabs.attacks.norms.ascend``.
    """
    search = checked_search(steps, inputs_key, early_exit, eot, loop, restarts, random_start)
    ball = checked_ball(epsilon, norm, bounds)
    rule = Rule(Partial(_init, ball), Partial(_move, ball, checkpoints(search.steps)))
    return make_attack(rule, ball, search)


def checkpoints(steps: int) -> np.ndarray:
    """Return how many steps each checkpoint closes, 0 where there is none.

    Example:
      >>> np.flatnonzero(checkpoints(100))
      array([22, 41, 57, 70, 80, 87, 93, 99])
    """
    intervals = np.zeros(steps + 1, np.int32)
    before, share, last = 0.0, 0.22, 0
    while math.ceil(share * steps - 1e-9) <= steps:
        at = math.ceil(share * steps - 1e-9)  # undo the rounding of a whole number
        if at > last:  # with few steps two may be one
            intervals[at] = at - last
        before, share, last = share, share + max(share - before - 0.03, 0.06), at
    return intervals


def _init(ball: Ball, point: jax.Array) -> _State:
    dtype = jnp.promote_types(point.dtype, jnp.float32)
    step_size, lowest = jnp.asarray(2 * ball.epsilon, dtype), jnp.asarray(-jnp.inf, dtype)
    best = _Seen(point, lowest, jnp.zeros_like(point))
    return _State(point, step_size, best, lowest, jnp.zeros((), jnp.int32), lowest, jnp.zeros((), bool))


def _move(ball: Ball, intervals: jax.Array, here: Here, state: _State) -> tuple[jax.Array, _State]:
    inputs, point, value, gradient, i = here
    better = value > state.best.value
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), _Seen(point, value, gradient), state.best)
    rises = state.rises + (value > state.last_value) * (i > 0)

    interval = jnp.asarray(intervals)[i]
    stalled = ~state.halved & (best.value == state.checked_value)
    halve = (interval > 0) & ((rises < _ENOUGH_RISES * interval) | stalled)
    step_size = jnp.where(halve, state.step_size / 2, state.step_size)
    point = jnp.where(halve, best.point, point)
    gradient = jnp.where(halve, best.gradient, gradient)
    previous = jnp.where(halve, point, state.previous)

    ahead = norms.ascend(point, gradient, step_size, inputs, ball)
    inertia = jnp.where(i == 0, 1.0, _INERTIA)
    target = point + inertia * (ahead - point) + (1 - inertia) * (point - previous)
    return norms.restrict(target, inputs, ball), _State(
        previous=point,
        step_size=step_size,
        best=best,
        last_value=value,
        rises=jnp.where(interval > 0, 0, rises),
        checked_value=jnp.where(interval > 0, best.value, state.checked_value),
        halved=jnp.where(interval > 0, halve, state.halved),
    )
