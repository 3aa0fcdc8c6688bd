"""Fisher matrices as operators: Gauss-Newton matrices of what a model predicts, or of its losses by example."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import batch_axis, trees
from hessabs.curvature.gauss_newton import gauss_newton
from hessabs.curvature.linearization import Weight
from hessabs.curvature.losses import scalar, without_aux
from hessabs.typing import Batch, LossFn, Operator, Params

Distribution = Literal["categorical", "bernoulli", "normal"]


def fisher(
    model_fn: Callable[[Params, Batch], Any],
    params: Params,
    batch: Batch,
    *,
    distribution: Distribution = "categorical",
    weight: Weight = None,
    **options: Any,
) -> Operator:
    """Make the Fisher matrix of a model's predictive distribution an operator, the mean over its positions.

    The expectation over labels is exact, no labels are sampled: outputs that are the natural parameters of an
    exponential family have the Fisher matrix ``d^2 A / d outputs^2``, with A the log-partition function.

    Args:
      model_fn: ``model_fn(params, batch) -> outputs``, an array of shape (examples, ..., outputs).
      params, batch: As in ``gauss_newton``; the labels of the batch are not used.
      distribution: ``"categorical"`` (outputs are logits over the last axis), ``"bernoulli"`` (one logit per
        output) or ``"normal"`` (outputs are means of unit variance).
      weight: ``weight(batch)``, of the shape of the outputs without their last axis, or of their leading axes:
        how much each position counts in the mean, 0 where it is padding. None for all alike.
      **options: ``linearize``, ``memory_budget``, ``mode``, ``step``, ``has_aux`` and ``axis_name``, as in
        ``gauss_newton``.

    Returns:
      A callable pytree, positive semi-definite: ``operator(vector) -> pytree like params``.

    Raises:
      ValueError: If the distribution is unknown, or as in ``gauss_newton``.

    Example:
      >>> operator = fisher(lambda w, x: x @ w, jnp.zeros((1, 2)), jnp.ones((4, 1)))
      >>> operator(jnp.array([[1.0, 0.0]]))
      Array([[ 0.25, -0.25]], dtype=float32)

    References:
      Martens (2020), arXiv:1412.1193, section 9.
    """
    loss_fn = log_partition(distribution, weight)
    return gauss_newton(model_fn, loss_fn, params, batch, weight=weight, **options)


def empirical_fisher(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    has_aux: bool = False,
    weight: Weight = None,
    **options: Any,
) -> Operator:
    """Make the second moment of the per-example gradients, ``1/n sum_i g_i g_i'``, an operator.

    One product costs about what a Gauss-Newton product does: the gradients themselves are never formed.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``. It is called with one example at a time (under ``vmap``),
        so batch norm must be in evaluation mode.
      params, batch, has_aux: As in ``hessian``; the batch's scalars and random keys are those of every example.
      weight: How much each example counts, called as the loss is; one that counts 0 is not looked at. None for
        all alike.
      **options: As in ``fisher``.

    Returns:
      A callable pytree, positive semi-definite: ``operator(vector) -> pytree like params``.

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
    model_fn, half_mean_square = squared_losses(loss_fn, weight, has_aux=has_aux)
    return gauss_newton(model_fn, half_mean_square, params, batch, weight=weight, **options)


def log_partition(distribution: Distribution, weight: Weight) -> Partial:
    """Make the mean log-partition function of outputs: its Gauss-Newton matrix is the Fisher matrix."""
    if distribution not in _LOG_PARTITION:
        raise ValueError(f"`distribution` must be one of {', '.join(_LOG_PARTITION)}, got {distribution!r}.")
    function = trees.Static(_LOG_PARTITION[distribution])
    return Partial(_mean_log_partition, function, trees.as_partial(weight))


def squared_losses(loss_fn: LossFn, weight: Weight, *, has_aux: bool = False) -> tuple[Partial, Partial]:
    """Make the losses of all examples, as a model, and half their mean square, as its loss."""
    bound = trees.as_partial(weight)
    model_fn = Partial(_losses_by_example, without_aux(loss_fn, has_aux), bound)
    return model_fn, Partial(_half_mean_square, bound)


_LOG_PARTITION = {
    "categorical": lambda outputs: jax.nn.logsumexp(outputs, axis=-1),
    "bernoulli": lambda outputs: jnp.sum(jax.nn.softplus(outputs), axis=-1),
    "normal": lambda outputs: jnp.sum(outputs**2, axis=-1) / 2,
}


def _mean_log_partition(function: trees.Static, weight: Weight, outputs: Any, batch: Batch) -> Any:
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) < 2:
        got = type(outputs).__name__ if shape is None else f"the shape {shape}"
        raise ValueError(
            f"`model_fn` must return an array of outputs of shape (examples, ..., outputs), got {got}; where "
            "an example has one output, the last axis has length 1 (outputs[:, None])."
        )
    values = function.value(outputs)
    if weight is None:
        return jnp.mean(values)
    weights = jnp.asarray(weight(batch))
    if weights.ndim == 0 or weights.shape != values.shape[: weights.ndim]:
        raise ValueError(
            "`weight` must say how much each position counts in the Fisher matrix: of the outputs' shape "
            f"without the last axis, {values.shape}, or of its leading axes, got {weights.shape}."
        )
    return _weighted_mean(values, weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim)))


def _weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    values, weights = trees.upcast(values), trees.upcast(jnp.broadcast_to(weights, values.shape))
    return jnp.sum(jnp.where(weights > 0, weights * values, 0)) / jnp.sum(weights)


def _example_weights(weight: Weight, batch: Batch) -> jax.Array:
    return batch_axis.each_example(lambda one: batch_axis.total_weight(weight, one), batch)


def _losses_by_example(loss_fn: LossFn, weight: Weight, params: Params, batch: Batch) -> jax.Array:
    if weight is not None:
        # The loss of an example that does not count may be 0 / 0. Another one, which is then not counted twice,
        # takes its place: its derivative would still be NaN times 0.
        counts = _example_weights(weight, batch) > 0
        places = jnp.where(counts, jnp.arange(counts.size), jnp.argmax(counts))
        batch = batch_axis.map_examples(lambda x: jnp.asarray(x)[places], batch)
    return batch_axis.each_example(lambda one: scalar(loss_fn, params, one), batch)


def _half_mean_square(weight: Weight, losses: jax.Array, batch: Batch) -> jax.Array:
    if weight is None:
        return jnp.mean(losses**2) / 2
    return _weighted_mean(losses**2, _example_weights(weight, batch)) / 2
