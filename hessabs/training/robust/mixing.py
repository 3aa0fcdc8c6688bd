"""ABSA: a fraction of each micro-batch is replaced by adversarial examples; the rule says how large."""

from typing import Any

import flax.linen as nn
import jax

from hessabs.attacks import replace_fraction
from hessabs.training.robust.inner import InnerAttack
from hessabs.training.robust.objective import Objective
from hessabs.typing import Params


def mixing(inner: InnerAttack, max_fraction: float, micro_batch_size: int | None = None) -> Objective:
    """Make the objective of ABSA.

    Args:
      inner: The attack on the head of each micro-batch, with the network in evaluation mode.
      max_fraction: The largest fraction there will be.
      micro_batch_size: Examples of a micro-batch, for batches of several of them one behind the other: the
        fraction is then that of each.

    Returns:
      An ``Objective`` that follows the adversarial fraction of the rule.

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1.
    """

    def perturb(
        model: nn.Module, params: Params, model_state: Any, batch: Any, fraction: Any, key: jax.Array
    ) -> Any:
        loss_fn = inner.loss(model, model_state)
        return replace_fraction(
            inner.attack,
            loss_fn,
            params,
            batch,
            fraction,
            key,
            max_fraction=max_fraction,
            part_size=micro_batch_size,
        )

    return Objective(perturb=perturb, driven_by_python=inner.driven_by_python)
