"""A loss example by example: its values, its gradients, and which examples have fallen."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, trees
from hessabs.attacks.inputs import get_inputs, with_inputs
from hessabs.attacks.losses.carrying import Spec, carries_logits, classes_of, parts
from hessabs.typing import LossFn, Params


def per_example(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int
) -> tuple[jax.Array, jax.Array]:
    """Evaluate a loss for each example by itself.

    Args:
      loss_fn: A loss of this package, or any mean over examples that do not influence each other.
      params: What the loss takes.
      batch: n examples.
      inputs_key: Where the inputs are; only read for other losses, to see which dtype they have.

    Returns:
      ``(values, fallen)``, (n,) in at least float32 and (n,) bool; a loss without logits says False throughout.
    """
    if carries_logits(loss_fn):
        logits_fn, spec = parts(loss_fn)
        logits = trees.upcast(logits_fn(params, get_inputs(batch, spec.inputs_key)))
        return spec.criterion(logits, *classes_of(spec, batch)), has_fallen(spec, logits, batch)

    axes = batch_axis.in_axes(batch)

    def alone(example: Any) -> jax.Array:
        def as_batch(axis: int | None, x: Any) -> Any:
            return x if axis is None else x[None]

        return loss_fn(params, jax.tree.map(as_batch, axes, example, is_leaf=lambda axis: axis is None))

    values = trees.upcast(jax.vmap(alone, in_axes=(axes,))(batch))
    return values, jnp.zeros(values.shape, bool)


def with_gradient(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Evaluate a loss and its gradient for each example by itself.

    Args:
      loss_fn: As in ``per_example``.
      params: What the loss takes.
      batch: n examples.
      inputs_key: Where the inputs are.

    Returns:
      ``(values, fallen, gradient)``: (n,), (n,) and like the inputs. An entry of the gradient that is not
      finite is 0: that example stays where it is, and no other one knows.
    """

    def total(inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        values, fallen = per_example(loss_fn, params, with_inputs(batch, inputs_key, inputs), inputs_key)
        return jnp.sum(values), (values, fallen)

    gradient, (values, fallen) = jax.grad(total, has_aux=True)(get_inputs(batch, inputs_key))
    return values, fallen, jnp.where(jnp.isfinite(gradient), gradient, 0)


def has_fallen(spec: Spec, logits: jax.Array, batch: Any) -> jax.Array:
    """Tell which examples have fallen: classified as their target, or not as their label.

    Args:
      spec: Says where labels and targets are, and which of them counts.
      logits: Shape (n, classes).
      batch: n examples.

    Returns:
      Shape (n,), bool.
    """
    labels, targets = classes_of(spec, batch)
    wanted = targets if spec.targeted else labels
    wanted = jnp.argmax(wanted, axis=-1) if wanted.ndim == 2 else wanted
    return (jnp.argmax(logits, axis=-1) == wanted) == spec.targeted


def check_classes(loss_fn: LossFn, params: Params, batch: Any) -> None:
    """Raise when the labels or targets of a batch are no classes of the network.

    Args:
      loss_fn: Any loss; nothing is checked of one that does not carry its logits.
      params: What the loss takes.
      batch: The batch; traced values are not looked at.

    Raises:
      ValueError: If labels or targets are missing or out of range.
    """
    if not carries_logits(loss_fn):
        return
    logits_fn, spec = parts(loss_fn)
    labels, targets = classes_of(spec, batch)
    if trees.is_traced(labels, targets):
        return
    num_classes = jax.eval_shape(logits_fn, params, get_inputs(batch, spec.inputs_key)).shape[-1]
    for name, values in (("labels", labels), ("targets", targets)):
        if values is None or jnp.ndim(values) != 1:
            continue
        known = np.asarray(values)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"The {name} must lie in [0, {num_classes - 1}], one of {num_classes} classes, "
                f"got values from {low} to {high}."
            )
