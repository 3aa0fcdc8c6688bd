"""Attacks along H^+ g: the Newton direction of each example's own input Hessian, by conjugate gradients.

For a piecewise linear network and cross-entropy the input Hessian is ``J^T (diag p - p p^T) J`` almost
everywhere: positive semi-definite, of rank ``classes - 1`` at most, and the gradient lies in its range. So
``H^+ g`` is well defined though ``H^-1 g`` is not; conjugate gradients started from 0 stay in that range and
reach it in about ``classes - 1`` products, and ``g . H^+ g > 0``: it is a direction of ascent.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import programs, trees
from hessabs.attacks.checks import check_ball, check_count, check_positive, checked_inputs
from hessabs.attacks.climbing import along
from hessabs.attacks.losses.examples import with_gradient
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.rows import iterate
from hessabs.curvature.operators import input_hessian
from hessabs.inputs import with_inputs
from hessabs.loops import Loop
from hessabs.typing import Attack, LossFn, Params

_Problem: TypeAlias = tuple[Partial, Params, trees.Static]  # loss_fn, params, inputs_key


class _Rows(NamedTuple):
    example: Any  # the batch
    solution: jax.Array  # like the inputs
    residual: jax.Array  # like the inputs
    search: jax.Array  # like the inputs: the conjugate direction
    scale: jax.Array  # (n,), at least float32: g . H g / g . g, the unit of the Hessian
    done: jax.Array  # (n,), bool


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
      epsilon: L-infinity norm of the perturbation, at least 0.
      max_iters: Most products with the Hessian, at least 1; ``classes - 1`` are enough for a piecewise linear
        network.
      rtol: An example is solved when its residual is at most this times its gradient; above 0.
      damping: What is added to the Hessian's diagonal, in units of ``g . H g / g . g`` of the example, a lower
        bound of its largest eigenvalue; above 0.
      bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described.
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
    return _second_order(epsilon, "linf", max_iters, rtol, damping, bounds, inputs_key, loop)


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
      epsilon: L2 norm of the perturbation, at least 0.
      max_iters, rtol, damping: As for ``fhsm``.
      bounds, inputs_key, loop: As in every attack (``hessabs.attacks``).

    Returns:
      ``attack(loss_fn, params, batch, key=None) -> batch``. No random key.

    Raises:
      ValueError: If an argument is out of range; when called, if the batch is not as described.
      TypeError: If a ``custom_vjp`` in the loss blocks forward mode.

    Example:
      >>> loss = lambda w, batch: jnp.mean(jnp.sum(w * (batch["image"] + 1) ** 2, axis=1))
      >>> batch = {"image": jnp.array([[0.2, 0.6]])}
      >>> bool(jnp.allclose(l2hess(0.1)(loss, jnp.array([1.0, 4.0]), batch)["image"], jnp.array([0.26, 0.68])))
      True

    References:
      Yao et al. (2018), arXiv:1802.08241, L2HESS; else as for ``fhsm``.
    """
    return _second_order(epsilon, "l2", max_iters, rtol, damping, bounds, inputs_key, loop)


def _second_order(
    epsilon: float,
    norm: Norm,
    max_iters: int,
    rtol: float,
    damping: float,
    bounds: Bounds,
    inputs_key: str | int,
    loop: Loop | None,
) -> Attack:
    check_ball(epsilon, norm, bounds)
    check_count("max_iters", max_iters)
    check_positive("rtol", rtol)
    check_positive("damping", damping)

    def attack(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
        del key
        inputs = jnp.asarray(checked_inputs(loss_fn, params, batch, inputs_key, bounds))
        problem = (trees.as_partial(loss_fn), params, trees.Static(inputs_key))
        rows = iterate(Partial(_step, problem, damping, rtol), _begin(problem, batch), max_iters, loop)
        perturbed = along(inputs, rows.solution, epsilon, trees.Static((norm, bounds)))
        return with_inputs(batch, inputs_key, perturbed)

    return attack


@programs.jit
def _begin(problem: _Problem, batch: Any) -> _Rows:
    loss_fn, params, key = problem
    gradient = with_gradient(loss_fn, params, batch, key.value)[2]
    # Only the direction of the solution matters, so the gradient may have norm 1.
    unit, norm = jax.vmap(trees.normalize)(gradient)
    return _Rows(batch, jnp.zeros_like(unit), unit, unit, jnp.ones_like(norm), norm == 0)


def _step(problem: _Problem, damping: jax.Array, rtol: jax.Array, rows: _Rows, i: jax.Array) -> _Rows:
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
