"""The Hessian with respect to the inputs: how fast the loss turns in the neighbourhood of each example."""

import jax

from hessabs import trees
from hessabs.curvature.losses import scalar, without_aux
from hessabs.curvature.operators import hessian
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import Batch, LossFn, MatVec, Params


def input_hessian(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    inputs_key: str | int = "image",
    linearize: bool = False,
    has_aux: bool = False,
) -> MatVec:
    """Make the Hessian of each example's loss with respect to its input an operator.

    The operator is block-diagonal over examples: row i of the product is ``H_i v_i``, where ``H_i`` is the
    Hessian of the loss of example i alone. One product for all examples costs what one of the params does.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over examples that do not influence each other
        (batch norm in evaluation mode).
      params, batch: What the loss takes.
      inputs_key: The key, field name or index of the inputs in the batch.
      linearize, has_aux: As in ``hessian``.

    Returns:
      A callable pytree: ``operator(vector)``, both shaped like the inputs.

    Raises:
      ValueError: If the batch has no such inputs or they are no floating-point array.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean(jnp.sum(w * batch["image"] ** 2, axis=1))
      >>> operator = input_hessian(loss, jnp.array([1.0, 3.0]), {"image": jnp.zeros((2, 2))})
      >>> operator(jnp.ones((2, 2)))
      Array([[2., 6.],
             [2., 6.]], dtype=float32)
    """
    inputs = get_inputs(batch, inputs_key)
    summed = jax.tree_util.Partial(
        _summed_loss, without_aux(loss_fn, has_aux), params, trees.Static(inputs_key)
    )
    return hessian(summed, inputs, batch, linearize=linearize)


def _summed_loss(
    loss_fn: LossFn, params: Params, key: trees.Static, inputs: jax.Array, batch: Batch
) -> jax.Array:
    return scalar(loss_fn, params, with_inputs(batch, key.value, inputs)) * inputs.shape[0]
