"""Learning rates that follow the batch: a controller's factor, and schedules counted in examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs.typing import Params


class ScaleByBatchSizeState(NamedTuple):
    """State of ``scale_by_batch_size``."""

    lr_scale: jax.Array  # shape (), float32: the factor of the last update


def scale_by_batch_size() -> optax.GradientTransformationExtraArgs:
    """Scale updates by the factor that a batch-size controller decided.

    ``update`` takes the extra argument ``lr_scale``, the controller's ``state.lr_scale``: growth of the batch
    and decay of the learning rate in one number. Place it after momentum, where a learning rate stands, so that
    a change acts at once on the whole step.

    Returns:
      A ``GradientTransformationExtraArgs``; its state keeps the last factor, which
      ``optax.tree.get(opt_state, "lr_scale")`` reads.

    Raises:
      ValueError: From ``update``, if ``lr_scale`` is not given.

    Example:
      >>> tx = optax.chain(scale_by_batch_size(), optax.sgd(0.1))
      >>> w = jnp.ones(1)
      >>> updates, state = tx.update(w, tx.init(w), w, lr_scale=2.0)
      >>> updates
      Array([-0.2], dtype=float32)

    References:
      Goyal et al. (2017), arXiv:1706.02677, the linear scaling rule.
    """

    def init(params: Params) -> ScaleByBatchSizeState:
        del params
        return ScaleByBatchSizeState(jnp.ones((), jnp.float32))

    def update(
        updates: optax.Updates,
        state: ScaleByBatchSizeState,
        params: Params | None = None,
        *,
        lr_scale: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByBatchSizeState]:
        del state, params, extra_args
        if lr_scale is None:
            raise ValueError(
                "scale_by_batch_size needs `lr_scale`: call update(gradient, state, params, "
                "lr_scale=controller_state.lr_scale)."
            )
        scale = jnp.asarray(lr_scale, jnp.float32)
        updates = jax.tree.map(lambda u: (u * scale).astype(u.dtype), updates)
        return updates, ScaleByBatchSizeState(scale)

    return optax.GradientTransformationExtraArgs(init, update)
