"""The last layer's block of the Hessian in closed form: no backpropagation, only features."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.curvature.layers import output_axes
from hessabs.curvature.losses import call
from hessabs.curvature.precision import full_precision
from hessabs.typing import Batch, MatVec, Params

_OTHER_LAYOUT = "Give `output_axis=0` if the kernel is stored as (classes, features)."


@full_precision
def last_layer(
    features_fn: Callable[[Batch], jax.Array],
    head_params: Params,
    batch: Batch,
    *,
    output_axis: int | None = None,
    weights: jax.Array | None = None,
) -> MatVec:
    """Make the last layer's block of the Hessian of a softmax cross-entropy an operator.

    With features a_i (1 appended for a bias), probabilities p_i and a vector V of the shape of the head:
    ``u_i = V a_i``; ``w_i = p_i * u_i - p_i (p_i . u_i)``; ``H V = sum_i m_i w_i a_i'``, with ``m_i = 1/n`` or
    by the weights. Labels do not enter. The features are computed once; a product is two matrix products.

    Args:
      features_fn: ``features_fn(batch)``, what enters the head, shape (examples, features), or (examples,
        positions, features) of sequences, with any number of axes between.
      head_params: A pytree with one kernel of shape (features, classes) and, optionally, one bias of shape
        (classes,): ``{"kernel": ..., "bias": ...}``, say, or the NNX state or Equinox module of the head.
      batch: What ``features_fn`` takes.
      output_axis: The axis of the classes in the kernel. None for 0 in a layer of ``equinox.nn``, whose
        kernels are (classes, features), and 1 elsewhere.
      weights: What each example or position weighs in the loss ``sum(weights * losses) / sum(weights)``, in the
        shape of the features without the last axis: a mask of tokens, say. None for the mean.

    Returns:
      A callable pytree, positive semi-definite: ``operator(vector) -> pytree like head_params``.

    Raises:
      ValueError: If ``head_params`` is no such head, or the features or the weights do not fit.

    Example:
      >>> operator = last_layer(lambda x: x, {"kernel": jnp.zeros((1, 2))}, jnp.ones((4, 1)))
      >>> operator({"kernel": jnp.array([[1.0, 0.0]])})
      {'kernel': Array([[ 0.25, -0.25]], dtype=float32)}

    References:
      Böhning (1992), "Multinomial logistic regression algorithm", on this Hessian.
    """
    trees.check_floating(head_params, "head_params")
    axes = trees.Static(_axes(head_params, output_axis))
    kernel, bias = _split(head_params, axes)
    features = call(features_fn, batch)
    if features.ndim < 2 or features.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"The features must have shape (examples, {kernel.shape[0]}) to enter a kernel of shape "
            f"{kernel.shape}, got {features.shape}. {_OTHER_LAYOUT}"
        )
    logits = features @ kernel if bias is None else features @ kernel + bias
    weights = None if weights is None else jnp.asarray(weights)
    shares = _shares(features.shape[:-1], weights, logits.dtype)
    return Partial(_product, features, jax.nn.softmax(logits), shares, head_params, axes)


@jax.jit
@full_precision
def _product(
    features: jax.Array,
    probabilities: jax.Array,
    shares: jax.Array,
    head_params: Params,
    axes: trees.Static,
    vector: Params,
) -> Params:
    trees.check_like(vector, head_params, "vector", "head_params", dtypes=True)
    kernel, bias = _split(vector, axes)
    u = features @ kernel if bias is None else features @ kernel + bias
    w = probabilities * (u - jnp.sum(probabilities * u, axis=-1, keepdims=True)) * shares[..., None]
    over = tuple(range(features.ndim - 1))
    product = jnp.tensordot(features, w, (over, over))
    leaves, treedef = jax.tree.flatten(vector)
    results = [
        jnp.sum(w, axis=over) if axis is None else product if axis == 1 else product.T for axis in axes.value
    ]
    return jax.tree.unflatten(treedef, [r.astype(x.dtype) for r, x in zip(results, leaves, strict=True)])


def _shares(shape: tuple[int, ...], weights: jax.Array | None, dtype: Any) -> jax.Array:
    if weights is None:
        return jnp.full(shape, 1 / math.prod(shape), dtype)
    if jnp.shape(weights) != shape:
        raise ValueError(
            f"`weights` must have the shape of the features without the last axis, {shape}, got "
            f"{jnp.shape(weights)}."
        )
    weights = weights.astype(dtype)
    return weights * trees.safe_inverse(jnp.sum(weights))


def _axes(head_params: Any, output_axis: int | None) -> tuple[int | None, ...]:
    axes = zip(jax.tree.leaves(head_params), output_axes(head_params, output_axis), strict=True)
    # A matrix is the kernel, whatever it is called.
    return tuple(1 if axis is None and leaf.ndim == 2 else axis for leaf, axis in axes)


def _split(head_params: Any, axes: trees.Static) -> tuple[jax.Array, jax.Array | None]:
    leaves = jax.tree.leaves(head_params)
    kernels = [x if axis == 1 else x.T for x, axis in zip(leaves, axes.value, strict=True) if x.ndim == 2]
    biases = [x for x in leaves if x.ndim == 1]
    fits = len(kernels) == 1 and len(biases) <= 1 and len(leaves) == 1 + len(biases)
    if not fits or any(bias.shape[0] != kernels[0].shape[1] for bias in biases):
        raise ValueError(
            "`head_params` must hold one kernel of shape (features, classes) and at most one bias of shape "
            f"(classes,), got shapes {[x.shape for x in leaves]}. {_OTHER_LAYOUT}"
        )
    return kernels[0], biases[0] if biases else None
