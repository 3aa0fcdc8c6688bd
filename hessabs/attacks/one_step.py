"""Attacks of one step of size epsilon: along the gradient of the loss, or along the Newton direction ``H^+ g``.

H is each example's own input Hessian. For a piecewise linear network and cross-entropy it is
``J^T (diag p - p p^T) J`` almost everywhere: positive semi-definite, of rank ``classes - 1`` at most, and the
gradient g lies in its range. So ``H^+ g`` is well defined though ``H^-1 g`` is not; conjugate gradients started
from 0 stay in that range and reach it in about ``classes - 1`` products, and go up: ``g . H^+ g > 0``.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks.checks import checked_ball, checked_inputs
from hessabs.attacks.given import given
from hessabs.attacks.losses import examples
from hessabs.attacks.norms import Ball, Bounds, along
from hessabs.attacks.rows import Problem, iterate
from hessabs.checks import count, number
from hessabs.curvature.operators import input_hessian
from hessabs.inputs import with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params


class _Rows(NamedTuple):
    example: Any  # the batch
    solution: jax.Array  # like the inputs
    residual: jax.Array  # like the inputs
    search: jax.Array  # like the inputs: the conjugate direction
    scale: jax.Array  # (n,), at least float32: g . H g / g . g, the unit of the Hessian
    done: jax.Array  # (n,), bool


def fgsm(
    epsilon: float,
    *,
    norm: Literal["linf", "l2"] = "linf",
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    eot: int | None = None,
) -> Attack:
    """Make the fast gradient sign method: one step of size epsilon up the gradient of the loss.

    ``x + epsilon * sign(g)`` for ``norm="linf"``, ``x + epsilon * g / ||g||_2`` for ``norm="l2"`` (the norm of
    each example's gradient). Within the bounds it is the point where a linear loss is highest: an entry stops
    at its bound, and in L2 the others go farther for it. An example whose gradient is zero stays as it is, and
    so does an entry whose gradient is not finite.

    Args:
      epsilon, norm, bounds, inputs_key, eot: As in every attack (``hessabs.attacks``).

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. The loss may be a mean over examples: the scale of
      the gradient does not matter. No random key.

    Raises:
      ValueError: As every attack.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.array([[0.5, 0.5]]), "label": jnp.array([0])}
      >>> fgsm(0.25)(loss, jnp.array([2.0, -1.0]), batch)["image"]
      Array([[0.75, 0.25]], dtype=float32)

    References:
      Goodfellow et al. (2014), arXiv:1412.6572, section 4; for l2: Shaham et al. (2015), arXiv:1511.05432.
      Differs from the published ABSA code: clipped to given bounds, not to the extremes of the batch. Differs
      from both papers: in L2 what the bounds cut off goes to the other entries.
    """
    ball = checked_ball(epsilon, norm, bounds, ("linf", "l2"))
    eot = examples.checked_draws(eot)

    @given(inputs_key)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        inputs = checked_inputs(loss_fn, params, batch, inputs_key, bounds, steps=1)
        examples.check_keys(eot, loss_fn, batch)
        mean = examples.expected(loss_fn, eot)
        number = inputs.shape[0]  # times the mean: one of a large batch would underflow where the loss is small
        gradient = jax.grad(lambda x: number * mean(params, with_inputs(batch, inputs_key, x)))(inputs)
        return with_inputs(batch, inputs_key, along(jnp.asarray(inputs), gradient, ball))

    return attack


def l2grad(
    epsilon: float, *, bounds: Bounds = (0.0, 1.0), inputs_key: str | int = "image", eot: int | None = None
) -> Attack:
    """Make one step of L2 length epsilon up the gradient of the loss: ``fgsm`` with ``norm="l2"``.

    Args:
      epsilon, bounds, inputs_key, eot: As for ``fgsm``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: As ``fgsm``.

    Example:
      >>> loss = lambda w, batch: jnp.mean(batch["image"] @ w)
      >>> batch = {"image": jnp.full((1, 2), 0.5), "label": jnp.zeros(1, int)}
      >>> found = l2grad(0.5)(loss, jnp.array([3.0, 4.0]), batch)["image"]
      >>> bool(jnp.allclose(found, jnp.array([[0.8, 0.9]])))
      True

    References:
      Yao et al. (2018), arXiv:1802.08241, L2GRAD; Shaham et al. (2015), arXiv:1511.05432.
    """
    return fgsm(epsilon, norm="l2", bounds=bounds, inputs_key=inputs_key, eot=eot)


def fhsm(
    epsilon: float,
    *,
    max_iters: int = 10,
    rtol: float = 1e-3,
    damping: float = 1e-6,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make the fast Hessian sign method: ``x + epsilon * sign(H^+ g)``.

    Args:
      epsilon, bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).
      max_iters: Most products with the Hessian, at least 1; ``classes - 1`` are enough for a piecewise linear
        network.
      rtol: An example is solved when its residual is at most this times its gradient; above 0.
      damping: What is added to the Hessian's diagonal, in units of ``g . H g / g . g`` of the example, a lower
        bound of its largest eigenvalue; above 0.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: As every attack.
      TypeError: If a ``custom_vjp`` in the loss blocks forward mode.

    Example:
      >>> loss = lambda w, batch: jnp.mean(jnp.sum(w * (batch["image"] + 1) ** 2, axis=1))
      >>> batch = {"image": jnp.array([[0.5, 0.5]])}
      >>> fhsm(0.25)(loss, jnp.array([1.0, 4.0]), batch)["image"]
      Array([[0.75, 0.75]], dtype=float32)

    References:
      Yao et al. (2018), arXiv:1802.08241, FHSM, which leaves the solver open. Where the curvature along a
      search direction is not positive (smooth activations) the solution so far is taken, at first the gradient.
    """
    return _second_order(checked_ball(epsilon, "linf", bounds), max_iters, rtol, damping, inputs_key, loop)


def l2hess(
    epsilon: float,
    *,
    max_iters: int = 10,
    rtol: float = 1e-3,
    damping: float = 1e-6,
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
    loop: Loop | None = None,
) -> Attack:
    """Make the attack along the Newton direction: ``x + epsilon * H^+ g / ||H^+ g||_2``.

    Args:
      epsilon, max_iters, rtol, damping, bounds, inputs_key, loop: As for ``fhsm``.

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: As ``fhsm``.

    Example:
      >>> loss = lambda w, batch: jnp.mean(jnp.sum(w * (batch["image"] + 1) ** 2, axis=1))
      >>> batch = {"image": jnp.array([[0.2, 0.6]])}
      >>> bool(jnp.allclose(l2hess(0.1)(loss, jnp.array([1.0, 4.0]), batch)["image"], jnp.array([0.26, 0.68])))
      True

    References:
      Yao et al. (2018), arXiv:1802.08241, L2HESS; else as for ``fhsm``.
    """
    return _second_order(checked_ball(epsilon, "l2", bounds), max_iters, rtol, damping, inputs_key, loop)


def _second_order(
    ball: Ball, max_iters: int, rtol: float, damping: float, inputs_key: str | int, loop: Loop | None
) -> Attack:
    max_iters = count(max_iters=max_iters)
    rtol = number("be positive and finite", rtol=rtol)
    damping = number("be positive and finite", damping=damping)

    @given(inputs_key)
    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        inputs = jnp.asarray(checked_inputs(loss_fn, params, batch, inputs_key, ball.bounds, steps=1))
        problem = (trees.as_partial(loss_fn), params, trees.Static(inputs_key))
        rows = iterate(Partial(_step, problem, damping, rtol), _begin(problem, batch), max_iters, loop)
        return with_inputs(batch, inputs_key, along(inputs, rows.solution, ball))

    return attack


@programs.jit
def _begin(problem: Problem, batch: Any) -> _Rows:
    loss_fn, params, key = problem
    gradient = examples.with_gradient(loss_fn, params, batch, key.value)[2]
    # Only the direction of the solution matters, so the gradient may have norm 1.
    unit, norm = jax.vmap(trees.normalize)(gradient)
    return _Rows(batch, jnp.zeros_like(unit), unit, unit, jnp.ones_like(norm), norm == 0)


def _step(problem: Problem, damping: jax.Array, rtol: jax.Array, rows: _Rows, i: jax.Array) -> _Rows:
    loss_fn, params, key = problem
    product = input_hessian(loss_fn, params, rows.example, inputs_key=key.value)(rows.search)

    def conjugate(
        solution: jax.Array, residual: jax.Array, search: jax.Array, scale: jax.Array, product: jax.Array
    ) -> tuple[jax.Array, ...]:
        # The Hessian in units of its Rayleigh quotient at the gradient: saturated examples have one of 1e-20.
        scale = jnp.where(i == 0, trees.vdot(search, product), scale)
        product = product * trees.safe_inverse(scale) + damping * search
        curvature = trees.vdot(search, product)
        good = (curvature > 0) & (scale > 0) & jnp.isfinite(curvature)
        before = trees.vdot(residual, residual)
        length = jnp.where(good, before * trees.safe_inverse(curvature), 0)
        left = residual - jnp.where(good, length * product, 0)
        after = trees.vdot(left, left)
        found = jnp.where(good, solution + length * search, jnp.where(i == 0, search, solution))
        following = left + after * trees.safe_inverse(before) * search
        arrays = (x.astype(search.dtype) for x in (found, left, following))
        return *arrays, scale, ~good | (jnp.sqrt(after) <= rtol)

    return _Rows(rows.example, *jax.vmap(conjugate)(*rows[1:5], product))
