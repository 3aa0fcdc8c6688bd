"""The last layer's block of the Hessian in closed form: no backpropagation, only features."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.curvature.precision import full_precision
from hessabs.typing import Batch, MatVec, Params


@full_precision
def last_layer(features_fn: Callable[[Batch], jax.Array], head_params: Params, batch: Batch) -> MatVec:
    """Make the last layer's block of the Hessian of a softmax cross-entropy an operator.

    With features a_i (1 appended for a bias), probabilities p_i and a vector V of the shape of the head:
    ``u_i = V a_i``; ``w_i = p_i * u_i - p_i (p_i . u_i)``; ``H V = 1/n sum_i w_i a_i'``. Labels do not enter.
    The features are computed once; a product is two matrix products. The block is positive semi-definite.

    Args:
      features_fn: ``features_fn(batch)``, what enters the head, shape (examples, features).
      head_params: A pytree with one kernel of shape (features, classes) and, optionally, one bias of shape
        (classes,): ``{"kernel": ..., "bias": ...}``, say.
      batch: What ``features_fn`` takes.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like head_params``.

    Raises:
      ValueError: If ``head_params`` is no such head, or the features do not fit its kernel.

    Example:
      >>> operator = last_layer(lambda x: x, {"kernel": jnp.zeros((1, 2))}, jnp.ones((4, 1)))
      >>> operator({"kernel": jnp.array([[1.0, 0.0]])})
      {'kernel': Array([[ 0.25, -0.25]], dtype=float32)}

    References:
      Böhning (1992), "Multinomial logistic regression algorithm", on this Hessian.
    """
    trees.check_floating(head_params, "head_params")
    kernel, bias = _split(head_params)
    features = features_fn(batch)
    if features.ndim != 2 or features.shape[1] != kernel.shape[0]:
        raise ValueError(
            f"The features must have shape (examples, {kernel.shape[0]}) to enter a kernel of shape "
            f"{kernel.shape}, got {features.shape}."
        )
    logits = features @ kernel if bias is None else features @ kernel + bias
    return Partial(_product, features, jax.nn.softmax(logits), head_params)


@jax.jit
@full_precision
def _product(features: jax.Array, probabilities: jax.Array, head_params: Params, vector: Params) -> Params:
    trees.check_like(vector, head_params, "vector", "head_params")
    kernel, bias = _split(vector)
    u = features @ kernel if bias is None else features @ kernel + bias
    w = probabilities * (u - jnp.sum(probabilities * u, axis=1, keepdims=True)) / features.shape[0]
    return jax.tree.map(
        lambda x: (features.T @ w if x.ndim == 2 else jnp.sum(w, axis=0)).astype(x.dtype), vector
    )


def _split(head_params: Any) -> tuple[jax.Array, jax.Array | None]:
    leaves = sorted(jax.tree.leaves(head_params), key=lambda x: -x.ndim)
    if [x.ndim for x in leaves] not in ([2], [2, 1]) or leaves[-1].shape[-1] != leaves[0].shape[-1]:
        raise ValueError(
            "`head_params` must hold one kernel of shape (features, classes) and at most one bias of shape "
            f"(classes,), got shapes {[x.shape for x in leaves]}."
        )
    return leaves[0], leaves[1] if len(leaves) == 2 else None
