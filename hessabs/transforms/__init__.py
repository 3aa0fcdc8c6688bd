"""The adversarial step and the batch-size rule as optax gradient transformations.

Both take what changes while training as extra arguments of ``update`` and ignore those of others, so that they
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
"""

from hessabs.transforms.adversarial import adversarial_gradient
from hessabs.transforms.scaling import ScaleByBatchSizeState, scale_by_batch_size

__all__ = ["ScaleByBatchSizeState", "adversarial_gradient", "scale_by_batch_size"]
