"""Training on attacked images: all of each micro-batch (Madry), or a fraction that the rule says (ABSA)."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs.attacks import num_replaced, replace_fraction
from hessabs.attacks.mixing import head_size
from hessabs.training.objectives.inner import InnerAttack
from hessabs.training.objectives.objective import Objective, Share
from hessabs.training.task import Task, attack_loss
from hessabs.typing import Params


def attacked(inner: InnerAttack) -> Objective:
    """Make the objective that trains on attacked images alone.

    With projected gradient descent inside it is Madry's training; with FGSM, L2GRAD, FHSM or L2HESS it gives
    the robust models of Yao et al. (2018), arXiv:1802.08241.

    Args:
      inner: The inner maximisation, with the network in evaluation mode.

    References:
      Madry et al. (2017), arXiv:1706.06083, equation 2.1. Differs from the published code: the network is in
      evaluation mode inside, as everywhere here, and the best point on the way is taken, not the last one.
    """

    def perturb(
        task: Task, params: Params, model_state: Any, batch: Any, fraction: Any, key: jax.Array, share: Share
    ) -> Any:
        del fraction, share
        return inner.on(task)(attack_loss(task, model_state), params, batch, key)

    return Objective(perturb=perturb, iterated=inner.iterated, fraction=1.0)


def mixing(inner: InnerAttack, max_fraction: float) -> Objective:
    """Make the objective of ABSA.

    The first examples of each micro-batch are attacked, whether one is handled at once or several; as many of a
    last one that is not full.

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
            most = -(-head_size(max_fraction, size) // share.devices) / here
            replaced = num_replaced(fraction, size) - share.index
            fraction = jnp.maximum(0, -(-replaced // share.devices)) * (1 / here)
        loss_fn = attack_loss(task, model_state)
        return replace_fraction(
            inner.on(task), loss_fn, params, batch, fraction, key, max_fraction=most, part_size=here
        )

    return Objective(perturb=perturb, iterated=inner.iterated, max_fraction=max_fraction)
