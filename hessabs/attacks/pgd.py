"""BIM, PGD, MI-FGSM and Adam-PGD: projected ascent that differs in its start and in its steps.

``step_size``, above 0 and in the units of the batch, is the length in ``norm`` of every step, as in the papers.
The one chosen by default is constant in L-infinity. In L2 and L1 the steps shorten, all by the same amount, 5
epsilon in all, for only short ones end near the optimum of a ball that is round or pointed, and long ones get
there.
"""

import functools
from typing import Any

import jax
import optax

from hessabs import trees
from hessabs.attacks import norms
from hessabs.attacks.ascent import Search, checked_ball
from hessabs.attacks.checks import check_not_negative
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.projected import projected
from hessabs.loops import Loop
from hessabs.typing import Attack

_GRADIENT = optax.identity()  # the direction of BIM and PGD


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
    search = Search(steps, inputs_key, early_exit, eot, loop)
    return projected(_GRADIENT, checked_ball(epsilon, norm, bounds), search, step_size, travel=1.0)


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
      epsilon, norm, steps, restarts, random_start: As in every attack (``hessabs.attacks``).
      step_size: Length of every step. By default 2.5 epsilon / steps in L-infinity, else shortening.
      bounds, inputs_key, early_exit, eot, loop: As in every attack.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described, or a key lacks.

    Example:
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
    search = Search(steps, inputs_key, early_exit, eot, loop, restarts, random_start)
    return projected(_GRADIENT, checked_ball(epsilon, norm, bounds), search, step_size, travel=2.5)


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
      epsilon, norm, steps, bounds, inputs_key, early_exit, eot, loop: As in every attack (``hessabs.attacks``).
      step_size: Length of every step. By default epsilon / steps in L-infinity, else shortening.
      momentum: Weight of the sum so far, at least 0.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

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
    check_not_negative("momentum", momentum)
    search = Search(steps, inputs_key, early_exit, eot, loop)
    return projected(_momentum(momentum), checked_ball(epsilon, norm, bounds), search, step_size, travel=1.0)


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
      epsilon, norm, steps, restarts, random_start: As in every attack (``hessabs.attacks``).
      optimizer: What ``optax`` would minimise minus the loss with; mapped over examples. ``optax.adam(1.0)`` by
        default. Pass the same object again to compile nothing again.
      step_size: Factor on the updates of the optimizer. The default, that of ``pgd``, suits an optimizer whose
        updates have entries of about 1, as those of ``adam(1.0)``.
      bounds, inputs_key, early_exit, eot, loop: As in every attack.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described, or a key lacks.

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
    search = Search(steps, inputs_key, early_exit, eot, loop, restarts, random_start)
    ball = checked_ball(epsilon, norm, bounds)
    return projected(optimizer, ball, search, step_size, travel=2.5, climbs=False)


@functools.cache
def _momentum(momentum: float) -> optax.GradientTransformation:
    def normalize(gradient: jax.Array, params: Any) -> jax.Array:
        # The largest entry first, so that the sum over a tiny gradient does not vanish.
        largest = norms.size(gradient, "linf")
        gradient = gradient * trees.safe_inverse(largest)
        return gradient * trees.safe_inverse(norms.size(gradient, "l1"))

    return optax.chain(optax.stateless(normalize), optax.trace(momentum))


@functools.cache
def _adam() -> optax.GradientTransformation:
    return optax.adam(1.0)
