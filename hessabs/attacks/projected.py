"""Projected gradient ascent, by any optax transformation: BIM, PGD, MI-FGSM, Adam-PGD.

Each attack repeats ``x <- P(x + step_size * direction(g))`` with P the projection onto the ball around the
clean example and then onto the bounds. The direction is an optax transformation mapped over examples, so that
its state and its norms are each example's own. What they share:

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


def bim(
    epsilon: float,
    *,
    norm: Norm = "linf",
    steps: int = 10,
    step_size: float | None = None,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    early_exit: bool = True,
    loop: Loop | None = None,
) -> Attack:
    """Make the basic iterative method (iterated FGSM; FGSM-10 with the defaults): PGD from the example itself.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      steps: Gradient steps, at least 1.
      step_size: Length of a step in ``norm``, above 0; epsilon / steps by default.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      early_exit: Stop each example where it falls.
      loop: ``"host"``, ``"device"``, or None to choose; see ``hessabs.curvature.loops``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The random key is not used.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> bim(0.25, steps=2)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Kurakin et al. (2016), arXiv:1607.02533, section 2.2; FGSM-10 of Yao et al. (2018), arXiv:1802.08241, with
      the step size that the paper leaves open.
    """
    return _projected(
        _steepest(norm),
        epsilon,
        norm,
        step_size,
        travel=1.0,
        steps=steps,
        bounds=bounds,
        inputs_key=inputs_key,
        early_exit=early_exit,
        loop=loop,
    )


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
    loop: Loop | None = None,
) -> Attack:
    """Make projected gradient descent, from random points of the ball.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``. In L1 a step moves the 5 % of the entries with the largest
        gradient, among those that the bounds let move.
      steps: Gradient steps of each restart, at least 1.
      step_size: Length of a step in ``norm``, above 0; 2.5 epsilon / steps by default.
      restarts: Random starts, at least 1; the result is the best of all.
      random_start: Start uniformly in the ball; otherwise at the example.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      early_exit: Stop each example, all its restarts, where it falls.
      loop: ``"host"``, ``"device"``, or None to choose; see ``hessabs.curvature.loops``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described or there is no
        key for random starts.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> pgd(0.25, restarts=2)(loss, jnp.array([2.0, -1.0]), batch, jax.random.key(0))["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Madry et al. (2017), arXiv:1706.06083, section 2.1; for L1, Tramer and Boneh (2019), arXiv:1904.13000,
      section 3.2.
    """
    return _projected(
        _steepest(norm),
        epsilon,
        norm,
        step_size,
        travel=2.5,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        bounds=bounds,
        inputs_key=inputs_key,
        early_exit=early_exit,
        loop=loop,
    )


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
    loop: Loop | None = None,
) -> Attack:
    """Make the momentum iterative method: steps along a sum of gradients, each divided by its L1 norm.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      steps: Gradient steps, at least 1.
      step_size: Length of a step in ``norm``, above 0; epsilon / steps by default.
      momentum: Weight of the sum so far, at least 0.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      early_exit: Stop each example where it falls.
      loop: ``"host"``, ``"device"``, or None to choose; see ``hessabs.curvature.loops``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The random key is not used.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> mi_fgsm(0.25, steps=2)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Dong et al. (2017), arXiv:1710.06081, Algorithm 1.
    """
    if not (0 <= momentum < float("inf")):
        raise ValueError(f"`momentum` must be finite and at least 0, got {momentum}.")
    return _projected(
        _with_momentum(norm, momentum),
        epsilon,
        norm,
        step_size,
        travel=1.0,
        steps=steps,
        bounds=bounds,
        inputs_key=inputs_key,
        early_exit=early_exit,
        loop=loop,
    )


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
    loop: Loop | None = None,
) -> Attack:
    """Make projected ascent whose steps come from Adam, or from any other optax optimiser.

    Args:
      epsilon: Radius of the ball in ``norm``, in the units of the batch, at least 0.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.
      optimizer: What ``optax`` would minimise minus the loss with; mapped over examples. ``optax.adam(1.0)`` by
        default. Pass the same object again to compile nothing again.
      steps: Steps of each restart, at least 1.
      step_size: Factor on the updates of the optimizer, above 0; 2.5 epsilon / steps by default, which suits
        one whose updates have entries of about 1, as those of ``adam(1.0)``.
      restarts: Random starts, at least 1; the result is the best of all.
      random_start: Start uniformly in the ball; otherwise at the example.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.
      early_exit: Stop each example, all its restarts, where it falls.
      loop: ``"host"``, ``"device"``, or None to choose; see ``hessabs.curvature.loops``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``; the key is needed for random starts.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described or there is no
        key for random starts.

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
    return _projected(
        optimizer,
        epsilon,
        norm,
        step_size,
        travel=2.5,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        bounds=bounds,
        inputs_key=inputs_key,
        early_exit=early_exit,
        loop=loop,
    )


def _projected(
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
    # `travel`: the length of all steps together in units of epsilon, where the caller names no step_size.
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


# Cached, so that attacks that differ in numbers alone share their compilations.
@functools.cache
def _steepest(norm: Norm) -> optax.GradientTransformation:
    return optax.stateless(lambda gradient, params: -norms.steepest(gradient, norm))


@functools.cache
def _with_momentum(norm: Norm, momentum: float) -> optax.GradientTransformation:
    def normalize(gradient: jax.Array, params: Any) -> jax.Array:
        # The largest entry first, so that the sum over a tiny gradient does not vanish.
        largest = norms.size(gradient, "linf")
        gradient = gradient * trees.safe_inverse(largest)
        return gradient * trees.safe_inverse(norms.size(gradient, "l1"))

    return optax.chain(optax.stateless(normalize), optax.trace(momentum), _steepest(norm))


@functools.cache
def _adam() -> optax.GradientTransformation:
    return optax.adam(1.0)
