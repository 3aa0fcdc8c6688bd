"""Free adversarial training: one backward pass gives the step of the params and that of the perturbation."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs.training.objectives.objective import Contribution, Objective
from hessabs.training.task import Task
from hessabs.typing import Params


def free(epsilon: float, step_size: float | None = None, replays: int = 4) -> Objective:
    """Make the objective of free adversarial training, in L-infinity.

    Each micro-batch comes several times in a row, each time under the perturbation that the gradients so far
    have made; it lives on to the next micro-batch, as the memory of the objective. Each pass counts as examples
    trained on, so a run makes as many passes and updates as any other and sees fewer images more often, as in
    the paper. Where an update takes several passes, they share one set of params: with as many as replays that
    is FreeLB.

    Args:
      epsilon: Bound of the perturbation, in the units of the prepared inputs, at least 0.
      step_size: Step of the perturbation; epsilon by default, as published.
      replays: How often in a row each micro-batch comes, at least 1.

    Returns:
      An ``Objective``; its memory is the perturbation, float32, of the shape of the images.

    References:
      Shafahi et al. (2019), arXiv:1904.12843, Algorithm 1; Zhu et al. (2019), arXiv:1909.11764, for FreeLB.
    """
    step = epsilon if step_size is None else step_size

    def gradient(
        task: Task, params: Params, model_state: Any, batch: Any, key: jax.Array, memory: Any
    ) -> Contribution:
        clean, (low, high) = batch[task.inputs_key], _bounds(task)

        def loss_fn(params: Params, perturbation: jax.Array) -> tuple[jax.Array, Any]:
            inputs = jnp.clip(clean + perturbation, jnp.minimum(low, clean), jnp.maximum(high, clean))
            out = task.loss(params, model_state, {**batch, task.inputs_key: inputs}, key, True)
            return out.mean, (out.weight, out.model_state)

        gradient_fn = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        (loss, (weight, new_state)), (gradient, ascent) = gradient_fn(params, memory)
        moved = jnp.clip(memory + step * jnp.sign(ascent), -epsilon, epsilon)
        return Contribution(loss, weight, gradient, new_state, moved)

    def init(task: Task, batch: Any) -> Any:
        _bounds(task)
        return jnp.zeros_like(batch[task.inputs_key])

    return Objective(gradient=gradient, init=init, fraction=1.0, replays=replays, per_micro_batch=True)


def _bounds(task: Task) -> tuple[float, float]:
    if task.bounds is None:
        raise ValueError(f"Free adversarial training needs continuous inputs; {task.name} has none.")
    return task.bounds
