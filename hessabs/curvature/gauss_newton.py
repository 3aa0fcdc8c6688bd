"""The generalised Gauss-Newton matrix as an operator.

It is ``J' M J``: forward mode through the model, the Hessian M of a loss of its outputs, and its transpose.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.curvature.differences import difference
from hessabs.curvature.linearization import LinearMaps, Modes, Weight, make_source, traceable
from hessabs.curvature.losses import call, scalar
from hessabs.curvature.parts import MEMORY_BUDGET, Linearize, make_operator
from hessabs.typing import Batch, MatVec, Operator, Params

Mode = Literal["forward", "reverse", "finite_difference"]
Functions = tuple[Callable[..., Any], ...]


def gauss_newton(
    model_fn: Callable[[Params, Batch], Any],
    loss_fn: Callable[[Any, Batch], jax.Array],
    params: Params,
    batch: Batch,
    *,
    linearize: Linearize = False,
    memory_budget: int = MEMORY_BUDGET,
    mode: Mode = "forward",
    step: float | None = None,
    has_aux: bool = False,
    axis_name: str | None = None,
    weight: Weight = None,
) -> Operator:
    """Make the generalised Gauss-Newton matrix ``J' (d^2 loss / d outputs^2) J`` an operator.

    It is the Hessian without the curvature of the model, and positive semi-definite when the loss is convex in
    the outputs. The model is linearised once: the forward product and its transpose share the residuals.

    Args:
      model_fn: ``model_fn(params, batch) -> outputs``, any pytree of floating-point arrays.
      loss_fn: ``loss_fn(outputs, batch) -> scalar``, the mean over the batch.
      params, batch, linearize, memory_budget, step, axis_name, weight: As in ``hessian``.
      mode: ``"forward"``, or ``"reverse"`` where a ``custom_vjp`` blocks forward mode: as exact, the forward
        product is then the transpose of the reverse one. ``"finite_difference"`` of two outputs of the model
        is for backward passes that cannot be differentiated; the transposed product stays exact.
      has_aux: Whether the model returns ``(outputs, aux)``; the second is dropped.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``.

    Raises:
      ValueError, TypeError: As in ``hessian``.

    Example:
      >>> import jax.numpy as jnp
      >>> model = lambda w, x: x @ w
      >>> loss = lambda outputs, x: jnp.mean(outputs**2)
      >>> operator = gauss_newton(model, loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> operator(jnp.ones(2))
      Array([1., 4.], dtype=float32)

    References:
      Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """
    options: dict[str, Any] = {"mode": mode, "step": step, "has_aux": has_aux, "axis_name": axis_name}
    source = make_source(MODES, (model_fn, loss_fn), params, batch, weight=weight, **options)
    return make_operator(source, linearize, memory_budget)


def _outputs(model_fn: Callable[..., Any], params: Params, batch: Batch) -> Any:
    outputs = call(model_fn, params, batch)
    for path, x in trees.by_path(outputs).items():
        if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            raise ValueError(
                f"The outputs of `model_fn` must be floating-point arrays, got {jnp.result_type(x)} at "
                f"{path or 'the root'}; what is no output it may return beside them, with `has_aux=True`."
            )
    return outputs


def _linear(functions: Functions, params: Params, batch: Batch) -> MatVec:
    model_fn, loss_fn = functions
    outputs, forward = jax.linearize(lambda p: _outputs(model_fn, p, batch), params)
    transposed = jax.linear_transpose(forward, params)
    _, middle = jax.linearize(jax.grad(lambda u: scalar(loss_fn, u, batch)), outputs)
    return lambda vector: transposed(middle(forward(vector)))[0]


def _reverse(functions: Functions, params: Params, batch: Batch) -> MatVec:
    model_fn, loss_fn = functions
    outputs, transposed = jax.vjp(lambda p: _outputs(model_fn, p, batch), params)
    backward = jax.linear_transpose(lambda u: transposed(u)[0], outputs)
    # The Hessian of the loss is symmetric: the transposed product is the product.
    _, middle = jax.vjp(jax.grad(lambda u: scalar(loss_fn, u, batch)), outputs)
    return lambda vector: transposed(middle(backward(vector)[0])[0])[0]


@functools.cache  # operators of one step share their program
def _differences(step: float | None) -> LinearMaps:
    def product(functions: Functions, params: Params, batch: Batch) -> MatVec:
        model_fn, loss_fn = functions

        def model(params: Params) -> Any:
            return _outputs(model_fn, params, batch)

        outputs, transposed = jax.vjp(model, params)
        forward = difference(model, params, step)
        gradient = jax.grad(lambda u: scalar(loss_fn, u, batch))

        def middle(u: Any) -> Any:
            return jax.jvp(gradient, (outputs,), (u,))[1]

        # The loss may hold a kernel without forward mode, too.
        second = middle if traceable(middle, outputs) else difference(gradient, outputs, None)
        return lambda vector: transposed(second(forward(vector)))[0]

    return LinearMaps(product, None)


_DIFFERENCE = ('mode="finite_difference" of `gauss_newton`', _differences(None).product)
_REVERSE_MODE = ('mode="reverse" (exact) of `gauss_newton`', _reverse)
MODES: Modes = {
    "forward": LinearMaps(_linear, _linear, (_REVERSE_MODE, _DIFFERENCE)),
    "reverse": LinearMaps(_reverse, _reverse, (_DIFFERENCE,)),
    "finite_difference": _differences,
}
