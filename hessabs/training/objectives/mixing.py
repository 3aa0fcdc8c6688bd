"""ABSA: a fraction of each micro-batch is replaced by adversarial examples; the rule says how large."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs.attacks import num_replaced, replace_fraction
from hessabs.training.objectives.inner import InnerAttack
from hessabs.training.objectives.objective import Objective, Share
from hessabs.training.task import Task, attack_loss
from hessabs.typing import Params


def mixing(inner: InnerAttack, max_fraction: float) -> Objective:
    """Make the objective of ABSA.

    The first examples of each micro-batch are attacked, whether one is handled at once or several.

    Args:
      inner: The attack on them, with the network in evaluation mode.
      max_fraction: The largest fraction there will be.

    Returns:
      An ``Objective`` that follows the adversarial fraction of the rule.

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1.
    """

    def perturb(
        task: Task, params: Params, model_state: Any, batch: Any, fraction: Any, key: jax.Array, share: Share
    ) -> Any:
        size, here = share.micro_batch_size, share.micro_batch_size // share.devices
        most = max_fraction
        if share.devices > 1:  # of the first m examples of a micro-batch this device holds every `devices`-th
            with jax.ensure_compile_time_eval():  # a shape, in the middle of a trace
                attacked = int(num_replaced(max_fraction, size))
            most = -(-attacked // share.devices) / here
            replaced = num_replaced(fraction, size) - share.index
            fraction = jnp.maximum(0, -(-replaced // share.devices)) * (1 / here)
        return replace_fraction(
            inner.attack,
            attack_loss(task, model_state),
            params,
            batch,
            fraction,
            key,
            max_fraction=most,
            part_size=here,
        )

    return Objective(perturb=perturb, iterated=inner.iterated, max_fraction=max_fraction)
