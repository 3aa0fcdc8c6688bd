"""What a micro-batch adds to an update: the one thing in which ways of robust training differ.

The step adds gradients up and descends; it does not know which objective it serves. An objective perturbs a
micro-batch, or differentiates something else than its loss, or both, and may carry arrays from one micro-batch
to the next. It says nothing of batch sizes and devices, so every objective goes with every batch-size rule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from hessabs.training.task import Task
from hessabs.typing import Params


class Contribution(NamedTuple):
    """What one micro-batch gives."""

    loss: jax.Array  # shape (), float32: what is minimised, a mean over `weight`
    weight: jax.Array  # shape (), float32: what the mean is over: examples, unmasked tokens
    gradient: Params
    model_state: Any  # after the micro-batch
    memory: Any  # after the micro-batch


class Share(NamedTuple):
    """Which part of each micro-batch is here: all of it, or every ``devices``-th example from ``index`` on."""

    micro_batch_size: int  # examples, all devices together
    devices: int = 1
    index: Any = 0  # may be traced


Gradient = Callable[[Task, Params, Any, Any, jax.Array, Any], Contribution]
"""``gradient(task, params, model_state, batch, key, memory) -> Contribution``, traced by the step."""

Perturb = Callable[[Task, Params, Any, Any, Any, jax.Array, Share], Any]
"""``perturb(task, params, model_state, batch, fraction, key, share) -> batch``, of prepared batches."""


def loss_gradient(
    task: Task, params: Params, model_state: Any, batch: Any, key: jax.Array, memory: Any
) -> Contribution:
    """Differentiate the training loss: plain training, and that of whoever perturbs the batch only."""

    def loss_fn(params: Params) -> tuple[jax.Array, Any]:
        out = task.loss(params, model_state, batch, key, True)
        return out.mean, (out.weight, out.model_state)

    (loss, (weight, new_state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return Contribution(loss, weight, gradient, new_state, memory)


class Objective(NamedTuple):
    """A way of training. The fields of plain training are the defaults."""

    gradient: Gradient = loss_gradient
    perturb: Perturb | None = None
    iterated: bool = False  # whether `perturb` holds a loop: Python may be the better driver of it
    init: Callable[[Task, Any], Any] = lambda task, batch: ()  # memory = init(task, prepared micro-batch)
    # The part of each micro-batch that it applies to; None: the adversarial fraction of the batch-size rule.
    fraction: float | None = None
    max_fraction: float = 1.0  # the largest that the rule will say
    replays: int = 1  # how often in a row each micro-batch comes
    per_micro_batch: bool = False  # whether what it computes is that of a whole micro-batch, of fixed size

    @property
    def follows_rule(self) -> bool:
        """Whether it attacks the fraction of each micro-batch that the rule says."""
        return self.perturb is not None and self.fraction is None
