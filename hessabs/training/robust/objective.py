"""What a micro-batch adds to an update: the one thing in which ways of robust training differ.

The training step adds gradients up and descends; it does not know which objective it serves. An objective
perturbs a micro-batch, or differentiates something else than its loss, or both, and may carry arrays from one
micro-batch to the next. It says nothing of batch sizes: k micro-batches accumulate to one update as they always
do, so every objective goes with every batch-size rule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from hessabs.training.losses import training_loss
from hessabs.typing import Params


class Contribution(NamedTuple):
    """What one micro-batch gives."""

    loss: jax.Array  # shape (), float32: what is minimised, in nats, a mean by weight
    gradient: Params
    model_state: Any  # after the micro-batch
    memory: Any  # after the micro-batch


Gradient = Callable[[nn.Module, Params, Any, Any, Any], Contribution]
"""``gradient(model, params, model_state, batch, memory) -> Contribution``, traced by the step."""

Perturb = Callable[[nn.Module, Params, Any, Any, Any, jax.Array], Any]
"""``perturb(model, params, model_state, batch, fraction, key) -> batch``; images are float32 in [0, 1]."""


def loss_gradient(model: nn.Module, params: Params, model_state: Any, batch: Any, memory: Any) -> Contribution:
    """Differentiate the training loss: plain training, and that of whoever perturbs the batch alone.

    Args:
      model: A flax module called as ``(x, train)``.
      params: Its params.
      model_state: Its collections beside the params.
      batch: image float32, label int32, weight float32, with one leading axis.
      memory: Returned as it is.

    Returns:
      A ``Contribution``.
    """
    gradient_fn = jax.value_and_grad(training_loss, argnums=2, has_aux=True)
    (loss, model_state), gradient = gradient_fn(model, model_state, params, batch)
    return Contribution(loss, gradient, model_state, memory)


class Objective(NamedTuple):
    """A way of training. The fields of plain training are the defaults."""

    gradient: Gradient = loss_gradient
    perturb: Perturb | None = None
    # Whether `perturb` holds a loop that Python is to drive, and so runs before the jitted step, not inside.
    driven_by_python: bool = False
    # memory = init(shape of the images of a micro-batch)
    init: Callable[[tuple[int, ...]], Any] = lambda shape: ()
    passes: int = 1  # of the network in training mode for a micro-batch, each after the state of the one before
    # The part of each micro-batch that it applies to; None: the adversarial fraction of the batch-size rule.
    fraction: float | None = None
