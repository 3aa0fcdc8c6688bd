"""From the outputs of a network to a mean, its weight and metrics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hessabs import trees


class Mean(NamedTuple):
    """A mean over some things."""

    mean: jax.Array  # shape (), float32: in nats
    weight: jax.Array  # shape (), float32: what the mean is over
    metrics: Mapping[str, jax.Array] = {}  # means over the same


OutputLoss = Callable[[Any, Any], Mean]
"""``loss(outputs, batch) -> Mean``."""


def classification(outputs: jax.Array, batch: Mapping[str, Any]) -> Mean:
    """Cross-entropy and accuracy over the examples of a batch.

    Args:
      outputs: Logits, shape (n, classes); rows that are not finite count as wrong.
      batch: label int32 (n,), weight float32 (n,).

    Returns:
      The mean over the examples, in nats; 0 where all weights are 0.
    """
    return _cross_entropy(outputs, batch["label"], batch["weight"], "accuracy")


def next_token(outputs: jax.Array, batch: Mapping[str, Any]) -> Mean:
    """Cross-entropy over the tokens of a batch that are not masked, and how many are the most likely one.

    Args:
      outputs: Logits, shape (n, length, vocabulary), of each token from those before it.
      batch: tokens int32 (n, length + 1), weight float32 (n,), and ``mask`` (n, length) or (n, length + 1), 0
        where a target does not count (of length + 1 the first is not looked at); without it all count.

    Returns:
      The mean over the tokens, in nats, with ``"token_accuracy"``; 0 where none counts. What keeps or draws the
      best goes by ``"accuracy"``, which this is not: a network of text is as good as its loss.
    """
    targets = batch["tokens"][:, 1:]
    weight = jnp.broadcast_to(batch["weight"][:, None], targets.shape)
    if "mask" in batch:
        weight = weight * batch["mask"][:, -targets.shape[1] :]
    return _cross_entropy(outputs, targets, weight, "token_accuracy")


def targets(loss: OutputLoss, batch: Mapping[str, Any]) -> np.ndarray:
    """List the labels of examples, as they are read, that one of the losses above counts."""
    if loss is classification:
        return np.asarray(batch["label"]).ravel()
    tokens = np.asarray(batch["tokens"])[:, 1:]
    return tokens[np.asarray(batch["mask"])[:, -tokens.shape[1] :] > 0] if "mask" in batch else tokens.ravel()


def _cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array, accuracy: str) -> Mean:
    if not hasattr(logits, "shape"):
        raise ValueError(
            f"The network must return logits, one array, got a {type(logits).__name__}: return these alone, or "
            "pass a `loss` that takes the outputs apart."
        )
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"Outputs and labels do not fit: logits of shape {logits.shape} need labels of shape "
            f"{logits.shape[:-1]}, got {labels.shape}."
        )
    logits = logits.astype(jnp.float32)
    labels = jnp.where(weight != 0, labels, 0)  # -100, say, where nothing counts
    right = (jnp.argmax(logits, axis=-1) == labels) & jnp.all(jnp.isfinite(logits), axis=-1)
    total = jnp.sum(weight)
    scale = trees.safe_inverse(total)
    values = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Mean(jnp.sum(values * weight) * scale, total, {accuracy: jnp.sum(right * weight) * scale})
