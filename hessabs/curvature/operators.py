"""Hessian-vector products, as functions and as operators.

The product is forward-over-reverse, ``jax.jvp`` over ``jax.grad``: one product costs about two gradients. With
``linearize=True`` the part that does not depend on the vector is computed once and kept, and a product costs
about 1.4 gradients, for the memory of the residuals. With ``axis_name`` each device multiplies by the Hessian
of its own share of the batch, and one collective averages the products.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax.tree_util import Partial

from hessabs import batch_axis, trees
from hessabs.curvature.differences import difference
from hessabs.curvature.linearization import LinearMaps, Modes, Weight, make, make_source
from hessabs.curvature.losses import scalar, without_aux
from hessabs.curvature.parts import MEMORY_BUDGET, Linearize, make_operator
from hessabs.curvature.passes import check_mean_over_rows
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import Batch, LossFn, MatVec, Operator, Params

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
    """Multiply the Hessian of a loss with a vector, for about the cost of two gradients.

    Args:
      loss_fn, params, batch, has_aux, axis_name: As in ``hessian``.
      vector: A pytree like ``params``, in its dtypes; with ``axis_name``, the same on every device.

    Returns:
      A pytree like ``params``.

    Raises:
      ValueError: If ``vector`` does not look like ``params``, or as in ``hessian``.
      TypeError: As in ``hessian``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> hvp(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.ones(2))
      Array([1., 4.], dtype=float32)

    References:
      Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """
    source = make_source(MODES, (loss_fn,), params, batch, has_aux=has_aux, axis_name=axis_name)
    return make(source, linearize=False)(vector)


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
    weight: Weight = None,
) -> Operator:
    """Make the Hessian of a loss an operator: a callable that is also a pytree.

    The operator may be passed into a jitted function. As long as ``loss_fn`` is the same function (or a
    ``Partial`` of it) and the shapes stay, new params, a new batch or new bound arrays compile nothing again.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch. It is compiled once, as by
        ``jax.jit``: globals and attributes that it reads are those of the first call. Bind what changes,
        ``jax.tree_util.Partial(loss_fn, alpha)``.
      params: A pytree of floating-point arrays.
      batch: What the loss takes; with ``axis_name``, this device's equal share.
      linearize: True to linearise the gradient once and store the residuals: products cost about 1.4 gradients
        instead of 2, for memory that grows with the batch. ``"auto"`` does so when the residuals fit
        ``memory_budget``, and otherwise sums over parts of the batch that each fit it (the loss must then be a
        mean over examples that do not influence each other, weighted by ``weight``; that it is no such mean is
        refused, and makes the products NaN under ``jit``, where values are not known).
      memory_budget: Bytes of residuals, for ``linearize="auto"``. They are counted before any work.
      mode: ``"forward_over_reverse"``, or what works when a ``custom_vjp`` blocks it:
        ``"reverse_over_reverse"`` (as exact, up to five times as slow, and needs a backward pass that can be
        differentiated) or ``"finite_difference"`` of two gradients, which always works: about three correct
        digits in float32, nine in float64 and one and a half with bfloat16 products.
      step: For ``"finite_difference"``: how far the params move to either side, the norm over all of them. None
        to choose it by the dtype that the gradient computes in; see ``hessabs.curvature.differences``.
      has_aux: Whether the loss returns ``(loss, aux)``; the second is dropped.
      axis_name: The mapped axis over which the batch is split, or None.
      weight: ``weight(batch)``: what the loss divides by, or an array whose sum that is; None for the number of
        examples. Read where the batch is split, by ``"auto"`` or over a mapped axis: with a loss that is a mean
        over unmasked tokens, say, ``lambda batch: batch["mask"]``.

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
    options: dict[str, Any] = {"mode": mode, "step": step, "has_aux": has_aux, "axis_name": axis_name}
    source = make_source(MODES, (loss_fn,), params, batch, weight=weight, **options)
    return make_operator(source, linearize, memory_budget)


def input_hessian(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    inputs_key: str | int = "image",
    linearize: bool = False,
    has_aux: bool = False,
    weight: Weight = None,
) -> MatVec:
    """Make the Hessian of each example's loss with respect to its input an operator.

    It is block-diagonal: row i of the product is ``H_i v_i``, where ``H_i`` is the Hessian of the loss of
    example i alone. One product for all examples costs what one of the params does.

    Args:
      loss_fn, params, linearize, has_aux: As in ``hessian``. Examples must not influence each other (batch norm
        in evaluation mode).
      batch: What the loss takes.
      inputs_key: The key, field name or index of the inputs in the batch.
      weight: ``weight(batch)``: what the loss divides by, or an array whose sum that is; None for the number of
        examples. Row i is then ``w_i H_i v_i``, w_i what the example counts.

    Returns:
      A callable pytree: ``operator(vector)``, both shaped like the inputs.

    Raises:
      ValueError: If the batch has no such inputs or they are no floating-point array; without ``weight``, if
        the loss is no mean over the examples (where values are known).

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(jnp.sum(w * batch["image"] ** 2, axis=1))
      >>> operator = input_hessian(loss, jnp.array([1.0, 3.0]), {"image": jnp.zeros((2, 2))})
      >>> operator(jnp.ones((2, 2)))
      Array([[2., 6.],
             [2., 6.]], dtype=float32)
    """
    inputs = get_inputs(batch, inputs_key)
    function, key = without_aux(loss_fn, has_aux), trees.Static(inputs_key)
    source = make_source(MODES, (Partial(_loss_of_rows, function, params),), inputs, batch, weight=weight)
    if found := check_mean_over_rows(source, batch):
        raise ValueError(found)
    summed = Partial(_summed_loss, function, params, key, trees.as_partial(weight))
    return hessian(summed, inputs, batch, linearize=linearize)


def _loss_of_rows(loss_fn: LossFn, params: Params, inputs: jax.Array, batch: Batch) -> jax.Array:
    del inputs  # the rows of the batch are looked at, as they are
    return scalar(loss_fn, params, batch)


def _summed_loss(
    loss_fn: LossFn, params: Params, key: trees.Static, weight: Weight, inputs: jax.Array, batch: Batch
) -> jax.Array:
    total = inputs.shape[0] if weight is None else batch_axis.total_weight(weight, batch)
    return scalar(loss_fn, params, with_inputs(batch, key.value, inputs)) * total


def _gradient(functions: tuple[LossFn, ...], batch: Batch) -> Callable[[Params], Params]:
    return jax.grad(lambda params: scalar(functions[0], params, batch))


def _product(functions: tuple[LossFn, ...], params: Params, batch: Batch) -> MatVec:
    gradient = _gradient(functions, batch)
    return lambda vector: jax.jvp(gradient, (params,), (vector,))[1]


def _linear(functions: tuple[LossFn, ...], params: Params, batch: Batch) -> MatVec:
    return jax.linearize(_gradient(functions, batch), params)[1]


def _reverse(functions: tuple[LossFn, ...], params: Params, batch: Batch) -> MatVec:
    # The Hessian is symmetric: the transposed product is the product.
    _, transposed = jax.vjp(_gradient(functions, batch), params)
    return lambda vector: transposed(vector)[0]


@functools.cache  # operators of one step share their program
def _differences(step: float | None) -> LinearMaps:
    def product(functions: tuple[LossFn, ...], params: Params, batch: Batch) -> MatVec:
        return difference(_gradient(functions, batch), params, step)

    return LinearMaps(product, None)


_DIFFERENCE = ('mode="finite_difference" of `hessian`', _differences(None).product)
_REVERSE_MODE = ('mode="reverse_over_reverse" (exact) of `hessian`', _reverse)
MODES: Modes = {
    "forward_over_reverse": LinearMaps(_product, _linear, (_REVERSE_MODE, _DIFFERENCE)),
    "reverse_over_reverse": LinearMaps(_reverse, _reverse, (_DIFFERENCE,)),
    "finite_difference": _differences,
}
