"""Positive semi-definite curvature: Gauss-Newton and Fisher matrices as operators.

All are ``J' M J``: forward mode through the model, a small symmetric map on its outputs, and the transpose of
the forward mode. They differ in M alone, and each M is the Hessian of a function of the outputs.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import batch_axis, trees
from hessabs.curvature.differences import check_step, difference
from hessabs.curvature.linearization import (
    MEMORY_BUDGET,
    Linearize,
    LinearMaps,
    Source,
    make_operator,
    traceable,
)
from hessabs.curvature.losses import call, scalar, without_aux
from hessabs.curvature.operators import mean_loss
from hessabs.typing import Batch, LossFn, MatVec, Params

Distribution = Literal["categorical", "bernoulli", "normal"]
Mode = Literal["forward", "reverse", "finite_difference"]


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
) -> MatVec:
    """Make the generalised Gauss-Newton matrix ``J' (d^2 loss / d outputs^2) J`` an operator.

    It is the Hessian without the curvature of the model, and positive semi-definite when the loss is convex in
    the outputs. The model is linearised once: the forward product and its transpose share the residuals.

    Args:
      model_fn: ``model_fn(params, batch) -> outputs``, any pytree of arrays.
      loss_fn: ``loss_fn(outputs, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batch: What both functions take; with ``axis_name``, this device's equal share.
      linearize: Keep the residuals of the linearisation: True, False or ``"auto"``, as in ``hessian``.
      memory_budget: Bytes of residuals, for ``"auto"``.
      mode: ``"forward"``, or ``"reverse"`` where a ``custom_vjp`` blocks forward mode: as exact, the forward
        product is then the transpose of the reverse one. ``"finite_difference"`` of two outputs of the model
        is for backward passes that cannot be differentiated; the transposed product stays exact.
      step: For ``"finite_difference"``, as in ``hessian``.
      has_aux: Whether the model returns ``(outputs, aux)``; the second is dropped.
      axis_name: The mapped axis over which the batch is split, or None.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``.

    Raises:
      ValueError: If a param is no floating-point array, the loss is no scalar, or an option is unknown.
      TypeError: If a ``custom_vjp`` in the model or the loss blocks the mode, with the modes that work.

    Example:
      >>> model = lambda w, x: x @ w
      >>> loss = lambda outputs, x: jnp.mean(outputs**2)
      >>> operator = gauss_newton(model, loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> operator(jnp.ones(2))
      Array([1., 4.], dtype=float32)

    References:
      Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """
    if mode == "finite_difference" and linearize is True:
        raise ValueError('`linearize=True` needs a derivative; with mode="finite_difference" leave it False.')
    if mode == "finite_difference":
        linearize = False
    functions = (without_aux(model_fn, has_aux), trees.as_partial(loss_fn))
    maps = trees.Static(gauss_newton_maps(mode, step))
    source = Source(maps, functions, params, batch, trees.Static(axis_name))
    return make_operator(source, linearize, memory_budget)


def gauss_newton_maps(mode: Mode = "forward", step: float | None = None) -> LinearMaps:
    """Return the ways to multiply with a Gauss-Newton matrix that a mode names.

    Args:
      mode: As in ``gauss_newton``.
      step: As in ``gauss_newton``.

    Returns:
      ``LinearMaps``.

    Raises:
      ValueError: If the mode is unknown, or the step not positive or of another mode.
    """
    if mode not in (*_MAPS, "finite_difference"):
        raise ValueError(f'`mode` must be "forward", "reverse" or "finite_difference", got {mode!r}.')
    check_step(mode, step)
    if mode != "finite_difference":
        return _MAPS[mode]
    return LinearMaps(_differences(step), _differences(step))


def fisher(
    model_fn: Callable[[Params, Batch], Any],
    params: Params,
    batch: Batch,
    *,
    distribution: Distribution = "categorical",
    **options: Any,
) -> MatVec:
    """Make the Fisher matrix of a model's predictive distribution an operator.

    The expectation over labels is exact, no labels are sampled: outputs that are the natural parameters of an
    exponential family have the Fisher matrix ``d^2 A / d outputs^2``, with A the log-partition function.

    Args:
      model_fn: ``model_fn(params, batch) -> outputs``, an array of shape (examples, ..., outputs).
      params: A pytree of floating-point arrays.
      batch: What the model takes; its labels are not used.
      distribution: ``"categorical"`` (outputs are logits over the last axis), ``"bernoulli"`` (one logit per
        output) or ``"normal"`` (outputs are means of unit variance).
      **options: ``linearize``, ``memory_budget``, ``mode``, ``step``, ``has_aux`` and ``axis_name``, as in
        ``gauss_newton``.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``. Positive semi-definite; the mean over all
      axes of the outputs but the last.

    Raises:
      ValueError: If the distribution is unknown, or as in ``gauss_newton``.

    Example:
      >>> operator = fisher(lambda w, x: x @ w, jnp.zeros((1, 2)), jnp.ones((4, 1)))
      >>> operator(jnp.array([[1.0, 0.0]]))
      Array([[ 0.25, -0.25]], dtype=float32)

    References:
      Martens (2020), arXiv:1412.1193, section 9.
    """
    if distribution not in _LOG_PARTITION:
        raise ValueError(f"`distribution` must be one of {', '.join(_LOG_PARTITION)}, got {distribution!r}.")
    return gauss_newton(model_fn, _LOG_PARTITION[distribution], params, batch, **options)


def empirical_fisher(
    loss_fn: LossFn, params: Params, batch: Batch, *, has_aux: bool = False, **options: Any
) -> MatVec:
    """Make the second moment of the per-example gradients, ``1/n sum_i g_i g_i'``, an operator.

    One product costs about what a Gauss-Newton product does: the gradients themselves are never formed.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``. It is called with one example at a time (under ``vmap``),
        so batch norm must be in evaluation mode.
      params: A pytree of floating-point arrays.
      batch: What the loss takes.
      has_aux: Whether the loss returns ``(loss, aux)``; the second is dropped.
      **options: ``linearize``, ``memory_budget``, ``mode``, ``step`` and ``axis_name``, as in ``gauss_newton``.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``. Positive semi-definite.

    Raises:
      ValueError: As in ``gauss_newton``.

    Example:
      >>> loss = lambda w, x: jnp.mean(x @ w)
      >>> operator = empirical_fisher(loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> operator(jnp.ones(2))
      Array([0.5, 2. ], dtype=float32)

    References:
      Kunstner et al. (2019), arXiv:1905.12558, on how it differs from the Fisher matrix.
    """
    losses = Partial(_losses_by_example, without_aux(loss_fn, has_aux))
    return gauss_newton(losses, _half_mean_square, params, batch, **options)


def _linear(
    functions: tuple[Callable[..., Any], ...], params: Params, batch: Batch, axis_name: str | None
) -> MatVec:
    model_fn, loss_fn = functions
    outputs, forward = jax.linearize(lambda p: call(model_fn, p, batch), params)
    transposed = jax.linear_transpose(forward, params)
    _, middle = jax.linearize(jax.grad(mean_loss(loss_fn, batch, axis_name)), outputs)
    return lambda vector: transposed(middle(forward(vector)))[0]


def _reverse(
    functions: tuple[Callable[..., Any], ...], params: Params, batch: Batch, axis_name: str | None
) -> MatVec:
    model_fn, loss_fn = functions
    outputs, transposed = jax.vjp(lambda p: call(model_fn, p, batch), params)
    backward = jax.linear_transpose(lambda u: transposed(u)[0], outputs)
    # The Hessian of the loss is symmetric: the transposed product is the product.
    _, middle = jax.vjp(jax.grad(mean_loss(loss_fn, batch, axis_name)), outputs)
    return lambda vector: transposed(middle(backward(vector)[0])[0])[0]


@functools.cache  # one function for each step: operators of one step share their program
def _differences(step: float | None) -> Callable[..., MatVec]:
    def product(
        functions: tuple[Callable[..., Any], ...], params: Params, batch: Batch, axis_name: str | None
    ) -> MatVec:
        model_fn, loss_fn = functions

        def model(params: Params) -> Any:
            return call(model_fn, params, batch)

        outputs, transposed = jax.vjp(model, params)
        forward = difference(model, params, step)
        gradient = jax.grad(mean_loss(loss_fn, batch, axis_name))

        def middle(u: Any) -> Any:
            return jax.jvp(gradient, (outputs,), (u,))[1]

        # The loss may hold a kernel without forward mode, too.
        second = middle if traceable(middle, outputs) else difference(gradient, outputs, None)
        return lambda vector: transposed(second(forward(vector)))[0]

    return product


_DIFFERENCE = ('mode="finite_difference" of `gauss_newton`', _differences(None))
_REVERSE = ('mode="reverse" (exact) of `gauss_newton`', _reverse)
_MAPS = {
    "forward": LinearMaps(_linear, _linear, (_REVERSE, _DIFFERENCE)),
    "reverse": LinearMaps(_reverse, _reverse, (_DIFFERENCE,)),
}


def _categorical(outputs: jax.Array, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(jax.nn.logsumexp(outputs, axis=-1))


def _bernoulli(outputs: jax.Array, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(jnp.sum(jax.nn.softplus(outputs), axis=-1))


def _normal(outputs: jax.Array, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(jnp.sum(outputs**2, axis=-1)) / 2


_LOG_PARTITION = {"categorical": _categorical, "bernoulli": _bernoulli, "normal": _normal}


def _losses_by_example(loss_fn: LossFn, params: Params, batch: Batch) -> jax.Array:
    def loss_of_one(example: Batch) -> jax.Array:
        return scalar(loss_fn, params, batch_axis.map_examples(lambda _, x: x[None], batch, example))

    return jax.vmap(loss_of_one, in_axes=(batch_axis.in_axes(batch),))(batch)


def _half_mean_square(losses: jax.Array, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(losses**2) / 2
