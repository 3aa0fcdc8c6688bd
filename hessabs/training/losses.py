"""The loss of a network, in training mode for gradients and in evaluation mode for curvature and attacks."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks.losses import LogitsFn
from hessabs.data import crop_flip
from hessabs.typing import LossFn, Params


def scale_images(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Turn images of uint8 into float32 in [0, 1], on the device; float images stay.

    Args:
      batch: A batch with the key "image"; with "shift", if its images are to be augmented.

    Returns:
      The batch with a float image, augmented, without "shift".
    """
    batch = dict(batch)
    image = batch["image"]
    if "shift" in batch:
        image = crop_flip(image, batch.pop("shift"))
    if image.dtype == jnp.uint8:
        image = image.astype(jnp.float32) / 255
    return {**batch, "image": image}


def training_loss(model: nn.Module, model_state: Any, params: Params, batch: Any) -> tuple[jax.Array, Any]:
    """Weighted mean cross-entropy in training mode: batch norm uses and updates its statistics.

    Args:
      model: A flax module called as ``(x, train)``.
      model_state: Its collections beside the params.
      params: Its params.
      batch: image float32, label int32, weight float32, with one leading axis.

    Returns:
      (the loss in nats, the new model state).
    """
    logits, new_state = training_logits(model, model_state, params, batch["image"])
    return cross_entropy(logits, batch), new_state


def training_logits(
    model: nn.Module, model_state: Any, params: Params, image: jax.Array
) -> tuple[jax.Array, Any]:
    """Apply the network in training mode.

    Args:
      model: A flax module called as ``(x, train)``.
      model_state: Its collections beside the params.
      params: Its params.
      image: float32, with a leading axis.

    Returns:
      (the logits, shape (n, classes); the new model state).
    """
    logits, new_state = model.apply(
        {"params": params, **model_state}, image, train=True, mutable=list(model_state)
    )
    return logits, new_state


def evaluation_loss(model: nn.Module, model_state: Any) -> LossFn:
    """Make the loss of the network in evaluation mode, for curvature and attacks.

    Args:
      model: A flax module called as ``(x, train)``.
      model_state: Its collections beside the params.

    Returns:
      ``loss_fn(params, batch) -> scalar`` in nats, a pytree: new values of the model state compile nothing.
    """
    return Partial(_evaluation_loss, trees.Static(model), model_state)


def evaluation_logits(model: nn.Module, model_state: Any) -> LogitsFn:
    """Make the logits of the network in evaluation mode, for the losses of ``hessabs.attacks``.

    Args:
      model: A flax module called as ``(x, train)``.
      model_state: Its collections beside the params.

    Returns:
      ``logits_fn(params, image) -> (n, classes)``, a pytree: new values of the model state compile nothing.
    """
    return Partial(_evaluation_logits, trees.Static(model), model_state)


def _evaluation_loss(model: trees.Static, model_state: Any, params: Params, batch: Any) -> jax.Array:
    return cross_entropy(_evaluation_logits(model, model_state, params, batch["image"]), batch)


def _evaluation_logits(model: trees.Static, model_state: Any, params: Params, image: jax.Array) -> jax.Array:
    logits: jax.Array = model.value.apply({"params": params, **model_state}, image, train=False)
    return logits


def cross_entropy(logits: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """Mean cross-entropy over the examples of a batch, by weight.

    Args:
      logits: Shape (n, classes).
      batch: label int32 (n,), weight float32 (n,).

    Returns:
      The loss in nats, a float32 scalar; 0 when all weights are 0.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
    return weighted_mean(losses, batch)


def weighted_mean(values: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """Mean over the examples of a batch, by weight.

    Args:
      values: Shape (n,).
      batch: weight float32 (n,).

    Returns:
      A scalar; 0 when all weights are 0.
    """
    return jnp.sum(values * batch["weight"]) * trees.safe_inverse(jnp.sum(batch["weight"]))
