"""Madry's robust training: the loss of the worst inputs nearby, ``min_theta mean max_x' J(theta, x', y)``."""

from typing import Any

import jax

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

    Returns:
      An ``Objective``.

    References:
      Madry et al. (2017), arXiv:1706.06083, equation 2.1. Differs from the published code: the network is in
      evaluation mode inside, as everywhere here, and the best point on the way is taken, not the last one.
    """

    def perturb(
        task: Task, params: Params, model_state: Any, batch: Any, fraction: Any, key: jax.Array, share: Share
    ) -> Any:
        del fraction, share
        return inner.attack(attack_loss(task, model_state), params, batch, key)

    return Objective(perturb=perturb, iterated=inner.iterated, fraction=1.0)
