"""The adversarial step and the batch-size rules as optax gradient transformations.

All take what changes while training as extra arguments of ``update`` and ignore those of others, so that they
stand in any ``optax.chain``::

    optimizer = optax.chain(
        hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.02)),
        optax.trace(0.9),
        hessabs.scale_by_batch_size(),
        optax.scale_by_learning_rate(0.1),
    )
    updates, opt_state = optimizer.update(
        gradient, opt_state, params,
        loss_fn=loss_fn, batch=batch,
        adversarial_fraction=state.adversarial_fraction, lr_scale=state.lr_scale,
    )

or, with the rule and the accumulation of gradients inside::

    optimizer = hessabs.accumulate(
        optax.chain(optax.trace(0.9), hessabs.adaptive_batch_size(rule), optax.scale_by_learning_rate(0.1)),
        micro_batch_size=128,
    )
    updates, opt_state = optimizer.update(gradient, opt_state, params, eigenvalue=eigenvalue)
"""

from hessabs.transforms.accumulation import AccumulateState, accumulate
from hessabs.transforms.adaptive import (
    AdaptiveBatchSizeState,
    adaptive_batch_size,
    self_measuring_batch_size,
)
from hessabs.transforms.adversarial import adversarial_gradient
from hessabs.transforms.following import ByExamplesState, by_examples
from hessabs.transforms.guard import GuardedLearningRateState, guarded_learning_rate
from hessabs.transforms.laws import follow_batch
from hessabs.transforms.reading import Reading, measurement_due, read
from hessabs.transforms.scaling import BySamplesState, ScaleByBatchSizeState, by_samples, scale_by_batch_size

__all__ = [
    "AccumulateState",
    "AdaptiveBatchSizeState",
    "ByExamplesState",
    "BySamplesState",
    "GuardedLearningRateState",
    "Reading",
    "ScaleByBatchSizeState",
    "accumulate",
    "adaptive_batch_size",
    "adversarial_gradient",
    "by_examples",
    "by_samples",
    "follow_batch",
    "guarded_learning_rate",
    "measurement_due",
    "read",
    "scale_by_batch_size",
    "self_measuring_batch_size",
]
