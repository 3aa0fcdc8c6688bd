"""The cross-entropy of a last linear layer, whose logits are never held whole."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike


def linear_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    labels: jax.Array,
    *,
    weights: ArrayLike | None = None,
    chunk_size: int = 512,
) -> jax.Array:
    """Return the mean softmax cross-entropy of the logits ``hidden @ kernel``, some tokens at a time.

    With a vocabulary of 50,000 the logits are most of what a language model keeps, and a Hessian-vector product
    holds them, their tangents and their softmax at once. Here a chunk of tokens makes its logits, and makes
    them anew in the backward pass: value, gradient and any product hold ``chunk_size`` rows of them. It is
    exact, and any transformation of JAX goes through it. It saves memory where there are many more tokens than
    d, for the gradient of the kernel is as large as the logits of d tokens.

    Args:
      hidden: What the last layer reads, shape (..., d), a float dtype; with tied embeddings the kernel is
        ``embedding.T``.
      kernel: Shape (d, vocabulary), a float dtype.
      labels: The right token of each row, integers of shape (...); any where the weight is 0.
      weights: Of the mean, shape (...), 0 for a token that does not count; None for 1 each. Where all are 0 the
        mean is NaN.
      chunk_size: Tokens at a time, at least 1. Logits and sums are float32 (float64 where the inputs are).

    Returns:
      The mean, a scalar.

    Raises:
      ValueError: If shapes do not fit each other, or ``chunk_size`` is out of its range.

    Example:
      >>> import hessabs
      >>> hidden, labels = jnp.eye(6, 4), jnp.array([0, 1, 2, 3, 0, 1])
      >>> loss_fn = lambda kernel, batch: linear_cross_entropy(batch["x"], kernel, batch["y"], chunk_size=2)
      >>> loss_fn(jnp.zeros((4, 10)), {"x": hidden, "y": labels})  # log 10
      Array(2.3025851, dtype=float32)
      >>> product = hessabs.hvp(loss_fn, jnp.zeros((4, 10)), {"x": hidden, "y": labels}, jnp.ones((4, 10)))
      >>> product.shape
      (4, 10)

    References:
      The recomputation is that of Chen et al. (2016), arXiv:1604.06174; for losses of a vocabulary see Wijmans
      et al. (2024), arXiv:2411.09009.
    """
    if kernel.ndim != 2 or hidden.shape != (*labels.shape, kernel.shape[0]):
        raise ValueError(
            "`hidden`, `kernel` and `labels` must have shapes (..., d), (d, vocabulary) and (...), got "
            f"{hidden.shape}, {kernel.shape} and {labels.shape}."
        )
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1 token, got {chunk_size}.")
    dtype = jnp.promote_types(jnp.result_type(hidden, kernel), jnp.float32)
    given = jnp.ones(labels.shape, dtype) if weights is None else jnp.asarray(weights, dtype)
    if given.shape != labels.shape:
        raise ValueError(f"`weights` must have the shape of `labels`, {labels.shape}, got {given.shape}.")

    rows = (hidden.reshape(-1, kernel.shape[0]), labels.reshape(-1), given.reshape(-1))
    size = min(chunk_size, max(labels.size, 1))
    missing = -labels.size % size
    chunks = [jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in rows]  # rows of weight 0
    chunks = [x.reshape(-1, size, *x.shape[1:]) for x in chunks]
    part = jax.checkpoint(functools.partial(_sum, dtype=dtype))

    def add(total: jax.Array, chunk: list[jax.Array]) -> tuple[jax.Array, None]:
        return total + part(kernel, *chunk), None

    total, _ = jax.lax.scan(add, jnp.zeros((), dtype), chunks)
    return total / jnp.sum(given)


def _sum(
    kernel: jax.Array, hidden: jax.Array, labels: jax.Array, weights: jax.Array, *, dtype: jnp.dtype
) -> jax.Array:
    labels = jnp.where(weights != 0, labels, 0)  # -100, say, where nothing counts
    logits = jnp.matmul(hidden, kernel, preferred_element_type=dtype)
    return jnp.sum(weights * optax.softmax_cross_entropy_with_integer_labels(logits, labels))
