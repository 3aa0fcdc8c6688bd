"""Free adversarial training: one backward pass gives the step of the params and that of the perturbation."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hessabs.training.losses import training_loss
from hessabs.training.robust.objective import Contribution, Objective
from hessabs.typing import Params


def free(epsilon: float, step_size: float | None = None) -> Objective:
    """Make the objective of free adversarial training, in L-infinity.

    Each micro-batch comes several times in a row (``hessabs.data.micro_batches(replays=...)``), each time under
    the perturbation that the gradients so far have made; it lives on to the next micro-batch. Each pass counts
    as examples trained on, so a run makes as many passes and updates as any other and sees fewer images more
    often, as in the paper. Where an update takes several passes, they share one set of params: with as many
    as replays that is FreeLB.

    Args:
      epsilon: Bound of the perturbation, in pixel values of [0, 1], at least 0.
      step_size: Step of the perturbation; epsilon by default, as published.

    Returns:
      An ``Objective``; its memory is the perturbation, float32, of the shape of the images.

    References:
      Shafahi et al. (2019), arXiv:1904.12843, Algorithm 1; Zhu et al. (2019), arXiv:1909.11764, for FreeLB.
    """
    step = epsilon if step_size is None else step_size

    def gradient(model: nn.Module, params: Params, model_state: Any, batch: Any, memory: Any) -> Contribution:
        def loss_fn(params: Params, perturbation: jax.Array) -> tuple[jax.Array, Any]:
            image = jnp.clip(batch["image"] + perturbation, 0, 1)
            return training_loss(model, model_state, params, {**batch, "image": image})

        gradient_fn = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        (loss, new_state), (gradient, ascent) = gradient_fn(params, memory)
        moved = jnp.clip(memory + step * jnp.sign(ascent), -epsilon, epsilon)
        return Contribution(loss, gradient, new_state, moved)

    return Objective(gradient=gradient, init=jnp.zeros, fraction=1.0)
