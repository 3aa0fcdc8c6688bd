"""Hessian-vector products, as functions and as operators.

The product is forward-over-reverse, ``jax.jvp`` over ``jax.grad``: one product costs about two gradients
(Pearlmutter, "Fast exact multiplication by the Hessian", 1994). With ``linearize=True`` the part that does not
depend on the vector is computed once and kept, and a product costs about 1.4 gradients, for the memory of the
residuals.

With ``axis_name`` the loss is averaged inside the differentiated function AND the result once more: this is
right under ``pmap`` and under ``shard_map`` with and without varying-axes checks (in the latter differentiation
already inserts the sum, and averaging equal values changes nothing).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax

from hessabs import collectives, trees
from hessabs.curvature.differences import check_step, difference
from hessabs.curvature.linearization import (
    MEMORY_BUDGET,
    Linearize,
    LinearMaps,
    Source,
    make_operator,
    multiply,
)
from hessabs.curvature.losses import scalar, without_aux
from hessabs.typing import Batch, LossFn, MatVec, Params

Mode = Literal["forward_over_reverse", "reverse_over_reverse", "finite_difference"]


def hvp(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    vector: Params,
    *,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> Params:
    """Multiply the Hessian of a loss with a vector.

    Computes ``(d^2 L / d params^2) vector`` by forward-over-reverse differentiation, about the cost of two
    gradients.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batch: What the loss takes; with ``axis_name``, this device's equal share.
      vector: A pytree like ``params``, in its dtypes; with ``axis_name``, the same on every device.
      has_aux: Whether the loss returns ``(loss, aux)``; the second is dropped.
      axis_name: The mapped axis over which the batch is split, or None.

    Returns:
      A pytree like ``params``.

    Raises:
      ValueError: If ``vector`` does not look like ``params``, a param is no floating-point array, or the loss
        is no scalar.
      TypeError: If a ``custom_vjp`` in the loss blocks forward mode, with the modes of ``hessian`` that work.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> hvp(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.ones(2))
      Array([1., 4.], dtype=float32)

    References:
      Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """
    trees.check_floating(params, "params")
    functions, axis = (without_aux(loss_fn, has_aux),), trees.Static(axis_name)
    return multiply(Source(trees.Static(HESSIAN), functions, params, batch, axis), None, vector)


def hessian(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    linearize: Linearize = False,
    memory_budget: int = MEMORY_BUDGET,
    mode: Mode = "forward_over_reverse",
    step: float | None = None,
    has_aux: bool = False,
    axis_name: str | None = None,
) -> MatVec:
    """Make the Hessian of a loss an operator: a callable that is also a pytree.

    The operator may be passed into a jitted function. As long as ``loss_fn`` is the same function (or a
    ``Partial`` of the same function) and the shapes stay, new params, a new batch or new bound arrays compile
    nothing again.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batch: What the loss takes; with ``axis_name``, this device's equal share.
      linearize: If True, linearise the gradient once and store the residuals: products cost about 1.4
        gradients instead of 2, for memory that grows with the batch. ``"auto"`` does so when the residuals fit
        ``memory_budget``, and otherwise sums over parts of the batch that each fit it (the loss must then be a
        mean over examples that do not influence each other).
      memory_budget: Bytes of residuals, for ``linearize="auto"``. They are counted before any work.
      mode: ``"forward_over_reverse"``, or what works when a ``custom_vjp`` blocks it:
        ``"reverse_over_reverse"`` (as exact, up to five times as slow, and needs a backward pass that can be
        differentiated) or ``"finite_difference"`` of two gradients, which always works: about three correct
        digits in float32, nine in float64 and one and a half with bfloat16 products.
      step: For ``"finite_difference"``: how far the params move to either side, the norm over all of them. None
        to choose it by the dtype that the gradient computes in; see ``hessabs.curvature.differences``.
      has_aux: Whether the loss returns ``(loss, aux)``; the second is dropped.
      axis_name: The mapped axis over which the batch is split, or None.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``.

    Raises:
      ValueError: If a param is no floating-point array, the loss is no scalar, or an option is unknown.
      TypeError: If a ``custom_vjp`` in the loss blocks the mode, with the modes that work.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> operator = hessian(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> jax.jit(lambda matvec, v: matvec(v))(operator, jnp.ones(2))
      Array([1., 4.], dtype=float32)
    """
    if mode == "finite_difference" and linearize is True:
        raise ValueError('`linearize=True` needs a derivative; with mode="finite_difference" leave it False.')
    if mode == "finite_difference":
        linearize = False
    maps, axis = trees.Static(hessian_maps(mode, step)), trees.Static(axis_name)
    source = Source(maps, (without_aux(loss_fn, has_aux),), params, batch, axis)
    return make_operator(source, linearize, memory_budget)


def hessian_maps(mode: Mode = "forward_over_reverse", step: float | None = None) -> LinearMaps:
    """Return the ways to multiply with a Hessian that a mode names.

    Args:
      mode: As in ``hessian``.
      step: As in ``hessian``.

    Returns:
      ``LinearMaps``.

    Raises:
      ValueError: If the mode is unknown, or the step not positive or of another mode.
    """
    if mode not in (*_MAPS, "finite_difference"):
        raise ValueError(f"`mode` must be one of {', '.join(_MAPS)}, finite_difference, got {mode!r}.")
    check_step(mode, step)
    if mode != "finite_difference":
        return _MAPS[mode]
    return LinearMaps(_differences(step), _differences(step))


def mean_loss(loss_fn: LossFn, batch: Batch, axis_name: str | None) -> Callable[[Any], jax.Array]:
    """Bind a batch to a loss, check that it gives a scalar, and average it over a mapped axis.

    Args:
      loss_fn: ``loss_fn(x, batch) -> scalar``.
      batch: Its second argument.
      axis_name: The mapped axis, or None.

    Returns:
      A function of ``x``. It raises ``ValueError`` when the loss is no scalar.
    """

    def bound(x: Any) -> jax.Array:
        return collectives.pmean(scalar(loss_fn, x, batch), axis_name)

    return bound


def _gradient(functions: tuple[LossFn, ...], batch: Batch, axis_name: str | None) -> Callable[[Params], Params]:
    return jax.grad(mean_loss(functions[0], batch, axis_name))


def _product(functions: tuple[LossFn, ...], params: Params, batch: Batch, axis_name: str | None) -> MatVec:
    gradient = _gradient(functions, batch, axis_name)
    return lambda vector: jax.jvp(gradient, (params,), (vector,))[1]


def _linear(functions: tuple[LossFn, ...], params: Params, batch: Batch, axis_name: str | None) -> MatVec:
    return jax.linearize(_gradient(functions, batch, axis_name), params)[1]


def _reverse(functions: tuple[LossFn, ...], params: Params, batch: Batch, axis_name: str | None) -> MatVec:
    # The Hessian is symmetric: the transposed product is the product.
    _, transposed = jax.vjp(_gradient(functions, batch, axis_name), params)
    return lambda vector: transposed(vector)[0]


@functools.cache  # one function for each step: operators of one step share their program
def _differences(step: float | None) -> Callable[..., MatVec]:
    def product(functions: tuple[LossFn, ...], params: Params, batch: Batch, axis_name: str | None) -> MatVec:
        return difference(_gradient(functions, batch, axis_name), params, step)

    return product


_DIFFERENCE = ('mode="finite_difference" of `hessian`', _differences(None))
_REVERSE = ('mode="reverse_over_reverse" (exact) of `hessian`', _reverse)
HESSIAN = LinearMaps(_product, _linear, (_REVERSE, _DIFFERENCE))
_MAPS = {
    "forward_over_reverse": HESSIAN,
    "reverse_over_reverse": LinearMaps(_reverse, _reverse, (_DIFFERENCE,)),
}
