"""BIM, PGD, MI-FGSM and Adam-PGD: projected ascent that differs in its start and in its steps.

BIM, PGD and MI-FGSM repeat ``norms.ascend``: a step along the gradient, or a sum of gradients, that ends in the
ball around the clean example and between the bounds. Adam-PGD takes the step of an optimiser and projects. The
result is each example's best point, the start included: one that has fallen (for losses that carry logits, see
``hessabs.attacks.losses``), else that of the highest loss.

``step_size``, above 0 and in the units of the batch, is the length in ``norm`` of every step, as in the papers.
The one chosen by default is constant in L-infinity. In L2 and L1 the steps shorten, all by the same amount, 5
epsilon in all, for only short ones end near the optimum of a ball that is round or pointed, and long ones get
there.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import norms
from hessabs.attacks.ascent import Here, Rule, Search, checked_search, make_attack
from hessabs.attacks.checks import checked_ball
from hessabs.attacks.norms import Ball, Bounds, Norm
from hessabs.checks import number
from hessabs.loops import Loop
from hessabs.typing import Attack

_GRADIENT = optax.identity()  # the direction of BIM and PGD
_ROUND_TRAVEL = 5.0  # all steps together in units of epsilon, in L2 and L1


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
      epsilon, norm, steps, bounds, inputs_key, early_exit, eot, loop: As in every attack (``hessabs.attacks``).
      step_size: Length of every step. By default epsilon / steps in L-infinity, else shortening.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> bim(0.25, steps=2)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Kurakin et al. (2016), arXiv:1607.02533, section 2.2; FGSM-10 of Yao et al. (2018), arXiv:1802.08241, with
      the step size that the paper leaves open.
    """
    search = checked_search(steps, inputs_key, early_exit, eot, loop)
    return _projected(_GRADIENT, checked_ball(epsilon, norm, bounds), search, step_size, travel=1.0)


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

    In L1 a step goes towards the point where the loss would be highest if it were linear: as few entries as
    fill the ball, each up to its bound.

    Args:
      epsilon, norm, steps, restarts, random_start, bounds, inputs_key, early_exit, eot, loop: As in every
        attack (``hessabs.attacks``).
      step_size: Length of every step. By default 2.5 epsilon / steps in L-infinity, else shortening.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> pgd(0.25, restarts=2)(loss, jnp.array([2.0, -1.0]), batch, jax.random.key(0))["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Madry et al. (2017), arXiv:1706.06083, section 2.1; for L1, ``hessabs.attacks.norms.ascend``.
      Differs from the paper: in L2 the steps shorten unless ``step_size`` is given. Steps of one length, 2.5
      epsilon in all, end 1 to 2 % below the highest linear loss.
    """
    search = checked_search(steps, inputs_key, early_exit, eot, loop, restarts, random_start)
    return _projected(_GRADIENT, checked_ball(epsilon, norm, bounds), search, step_size, travel=2.5)


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
    """Make the momentum iterative method: ``bim`` along a sum of gradients, each divided by its L1 norm.

    Args:
      epsilon, norm, steps, step_size, bounds, inputs_key, early_exit, eot, loop: As for ``bim``.
      momentum: Weight of the sum so far, at least 0.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> mi_fgsm(0.25, steps=2)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Dong et al. (2017), arXiv:1710.06081, Algorithm 1.
    """
    momentum = number("be at least 0 and finite", momentum=momentum)
    search = checked_search(steps, inputs_key, early_exit, eot, loop)
    return _projected(_momentum(momentum), checked_ball(epsilon, norm, bounds), search, step_size, travel=1.0)


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
      epsilon, norm, steps, restarts, random_start, bounds, inputs_key, early_exit, eot, loop: As for ``pgd``.
      optimizer: What ``optax`` would minimise minus the loss with; mapped over examples. ``optax.adam(1.0)`` by
        default. Pass the same object again to compile nothing again.
      step_size: Factor on the updates of the optimizer. The default, that of ``pgd``, suits an optimizer whose
        updates have entries of about 1, as those of ``adam(1.0)``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> attack = adam_pgd(0.25, optimizer=optax.rmsprop(1.0), steps=10, random_start=False)
      >>> attack(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Kingma and Ba (2014), arXiv:1412.6980; as an attack, Uesato et al. (2018), arXiv:1802.05666, section 3.
    """
    optimizer = _adam() if optimizer is None else optimizer
    search = checked_search(steps, inputs_key, early_exit, eot, loop, restarts, random_start)
    ball = checked_ball(epsilon, norm, bounds)
    return _projected(optimizer, ball, search, step_size, travel=2.5, move=_follow)


@functools.cache
def _momentum(momentum: float) -> optax.GradientTransformation:
    def normalize(gradient: jax.Array, params: Any) -> jax.Array:
        # The largest entry first, so that the sum over a tiny gradient does not vanish.
        gradient = gradient * trees.safe_inverse(norms.size(gradient, "linf"))
        return gradient * trees.safe_inverse(norms.size(gradient, "l1"))

    return optax.chain(optax.stateless(normalize), optax.trace(momentum))


@functools.cache
def _adam() -> optax.GradientTransformation:
    return optax.adam(1.0)


def _climb(optimizer: Any, ball: Ball, sizes: tuple[Any, Any], here: Here, state: Any) -> tuple[jax.Array, Any]:
    # What the optimizer returns is a direction, for the steepest ascent of the norm.
    direction, state = optimizer.update(here.gradient, state, here.point)
    return norms.ascend(here.point, direction, sizes[0] - sizes[1] * here.i, here.inputs, ball), state


def _follow(
    optimizer: Any, ball: Ball, sizes: tuple[Any, Any], here: Here, state: Any
) -> tuple[jax.Array, Any]:
    # What the optimizer returns is the step itself, of what would minimise minus the loss.
    gradient = here.gradient
    if ball.norm != "linf":
        # An optimiser that scales entries would go by its scales where the ball is in the way. This vanishes
        # there.
        way = norms.farthest(gradient, here.inputs, ball) - here.point
        gradient = jnp.where(jnp.any(gradient != 0), way, 0)
    updates, state = optimizer.update(-gradient, state, here.point)
    length = sizes[0] - sizes[1] * here.i
    return norms.restrict(here.point + length * updates, here.inputs, ball), state


def _projected(
    optimizer: optax.GradientTransformation,
    ball: Ball,
    search: Search,
    step_size: float | None,
    *,
    travel: float,
    move: Any = _climb,
) -> Attack:
    # The transformation is mapped over examples, so that its state and norms are each example's own. Without a
    # step size all steps together are `travel` epsilons, in L-infinity.
    shrink = 0.0  # by how much each step is shorter than the one before
    if step_size is not None:
        first = number("be positive and finite", step_size=step_size)
    elif ball.norm == "linf":
        first = travel * ball.epsilon / search.steps
    else:
        first = 2 * _ROUND_TRAVEL * ball.epsilon / (search.steps + 1)
        shrink = first / search.steps
    steps_of = optax.GradientTransformation(*map(trees.as_partial, optimizer))
    return make_attack(Rule(steps_of.init, Partial(move, steps_of, ball, (first, shrink))), ball, search)
