"""Positive semi-definite curvature: Gauss-Newton and Fisher matrices as operators.

All are ``J' M J``: forward mode through the model, a small symmetric map on its outputs, and the transpose of
the forward mode. They differ in M alone, and each M is the Hessian of a function of the outputs.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.curvature.linearization import MEMORY_BUDGET, Linearize, LinearMaps, Source, make_operator
from hessabs.curvature.operators import mean_loss
from hessabs.typing import Batch, LossFn, MatVec, Params

Distribution = Literal["categorical", "bernoulli", "normal"]


def gauss_newton(
    model_fn: Callable[[Params, Batch], Any],
    loss_fn: Callable[[Any, Batch], jax.Array],
    params: Params,
    batch: Batch,
    *,
    linearize: Linearize = False,
    memory_budget: int = MEMORY_BUDGET,
    mode: Literal["forward", "reverse"] = "forward",
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
        product is then the transpose of the reverse one.
      axis_name: The mapped axis over which the batch is split, or None.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``.

    Raises:
      ValueError: If a param is no floating-point array, the loss is no scalar, or an option is unknown.
      TypeError: If a ``custom_vjp`` in the model blocks forward mode.

    Example:
      >>> model = lambda w, x: x @ w
      >>> loss = lambda outputs, x: jnp.mean(outputs**2)
      >>> operator = gauss_newton(model, loss, jnp.zeros(2), jnp.array([[1.0, 0.0], [0.0, 2.0]]))
      >>> operator(jnp.ones(2))
      Array([1., 4.], dtype=float32)

    References:
      Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """
    if mode not in _MAPS:
        raise ValueError(f'`mode` must be "forward" or "reverse", got {mode!r}.')
    functions = (trees.as_partial(model_fn), trees.as_partial(loss_fn))
    source = Source(trees.Static(_MAPS[mode]), functions, params, batch, trees.Static(axis_name))
    return make_operator(source, linearize, memory_budget)


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
      **options: ``linearize``, ``memory_budget``, ``mode`` and ``axis_name``, as in ``gauss_newton``.

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


def empirical_fisher(loss_fn: LossFn, params: Params, batch: Batch, **options: Any) -> MatVec:
    """Make the second moment of the per-example gradients, ``1/n sum_i g_i g_i'``, an operator.

    One product costs about what a Gauss-Newton product does: the gradients themselves are never formed.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``. It is called with one example at a time (under ``vmap``),
        so batch norm must be in evaluation mode.
      params: A pytree of floating-point arrays.
      batch: What the loss takes.
      **options: ``linearize``, ``memory_budget``, ``mode`` and ``axis_name``, as in ``gauss_newton``.

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
    return gauss_newton(
        Partial(_losses_by_example, trees.as_partial(loss_fn)), _half_mean_square, params, batch, **options
    )


def _linear(
    functions: tuple[Callable[..., Any], ...], params: Params, batch: Batch, axis_name: str | None
) -> MatVec:
    model_fn, loss_fn = functions
    outputs, forward = jax.linearize(lambda p: model_fn(p, batch), params)
    transposed = jax.linear_transpose(forward, params)
    return _sandwich(outputs, forward, transposed, loss_fn, batch, axis_name)


def _reverse(
    functions: tuple[Callable[..., Any], ...], params: Params, batch: Batch, axis_name: str | None
) -> MatVec:
    model_fn, loss_fn = functions
    outputs, transposed = jax.vjp(lambda p: model_fn(p, batch), params)
    backward = jax.linear_transpose(lambda u: transposed(u)[0], outputs)
    return _sandwich(outputs, lambda v: backward(v)[0], transposed, loss_fn, batch, axis_name)


def _sandwich(
    outputs: Any,
    forward: Callable[[Any], Any],
    transposed: Callable[[Any], tuple[Any, ...]],
    loss_fn: LossFn,
    batch: Batch,
    axis_name: str | None,
) -> MatVec:
    _, middle = jax.linearize(jax.grad(mean_loss(loss_fn, batch, axis_name)), outputs)
    return lambda vector: transposed(middle(forward(vector)))[0]


_MAPS = {
    "forward": LinearMaps(_linear, _linear, 'mode="reverse" of `gauss_newton`'),
    "reverse": LinearMaps(_reverse, _reverse, "a model without it"),
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
        return loss_fn(params, jax.tree.map(lambda x: x[None], example))

    return jax.vmap(loss_of_one)(batch)


def _half_mean_square(losses: jax.Array, batch: Batch) -> jax.Array:
    del batch
    return jnp.mean(losses**2) / 2
