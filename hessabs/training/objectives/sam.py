"""Sharpness-aware minimisation: the worst params nearby, where robust training takes the worst inputs."""

from typing import Any

import jax

from hessabs import trees
from hessabs.training.objectives.objective import Contribution, Objective, loss_gradient
from hessabs.training.task import Task
from hessabs.typing import Params


def sam(rho: float) -> Objective:
    """Make the objective of sharpness-aware minimisation, ``grad J(theta + rho * g / ||g||)``.

    The ascent is that of each micro-batch by itself, the m-sharpness of the paper with m the micro-batch size:
    growth of the batch changes neither the objective nor its cost. ``optax.contrib.sam`` wraps an optimiser
    instead, so it would ascend once per update, knows nothing of accumulation or of ``lr_scale``, and gives NaN
    at a zero gradient, which here is a step of 0.

    Args:
      rho: L2 norm of the step in the space of all params, at least 0.

    Returns:
      An ``Objective`` of two gradients per micro-batch. Its loss is that at the params themselves, and so are
      the statistics of batch norm: the second pass uses those of the micro-batch and leaves no trace.

    References:
      Foret et al. (2020), arXiv:2010.01412, equations 2 and 3, and section 4.1 for the m-sharpness.
    """

    def gradient(
        task: Task, params: Params, model_state: Any, batch: Any, key: jax.Array, memory: Any
    ) -> Contribution:
        here = loss_gradient(task, params, model_state, batch, key, memory)
        direction, _ = trees.normalize(here.gradient)
        worst = jax.tree.map(lambda p, d: (p + rho * d).astype(p.dtype), params, direction)
        there = loss_gradient(task, worst, model_state, batch, key, memory)
        return here._replace(gradient=there.gradient)

    return Objective(gradient=gradient, fraction=1.0, per_micro_batch=True)
