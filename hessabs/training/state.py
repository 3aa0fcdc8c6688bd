"""What a training run carries from one update to the next, on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs.batch_size import GradientStatistics
from hessabs.typing import Params


class TrainState(NamedTuple):
    """The arrays that the jitted functions of a training step read and write."""

    params: Params
    model_state: Any  # collections of flax beside the params, batch norm statistics; {} without any
    opt_state: optax.OptState
    gradient: Params  # sum over this update's micro-batches, each times its weight; float32 at least
    weight: jax.Array  # shape (), float32: examples in `gradient`
    loss: jax.Array  # shape (), float32: sum of the losses since `read_loss`, each times its weight
    loss_weight: jax.Array  # shape (), float32: examples in `loss`
    square: jax.Array  # shape (), float32: sum of the squared norms of the micro-batches, if asked for
    parts: jax.Array  # shape (), int32: micro-batches in `gradient`
    statistics: GradientStatistics  # of the last update, if asked for
    updates: jax.Array  # shape (), int32: updates made
    nonfinite_update: jax.Array  # shape (), int32: the first update with a loss that is not finite, or 0
    memory: Any  # what the robust objective carries, a pytree of arrays; () where it carries nothing


def init_state(
    params: Params, model_state: Any, optimizer: optax.GradientTransformationExtraArgs, memory: Any = ()
) -> TrainState:
    """Make the state before the first update.

    Args:
      params: Initial params.
      model_state: Other collections of the network, {} without any.
      optimizer: The optax chain.
      memory: What the robust objective carries at first.

    Returns:
      A ``TrainState`` that shares no buffer between its fields, so that it may be donated.
    """
    return TrainState(
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        gradient=jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params),
        weight=jnp.zeros((), jnp.float32),
        loss=jnp.zeros((), jnp.float32),
        loss_weight=jnp.zeros((), jnp.float32),
        square=jnp.zeros((), jnp.float32),
        parts=jnp.zeros((), jnp.int32),
        statistics=GradientStatistics(
            jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(())
        ),
        updates=jnp.zeros((), jnp.int32),
        nonfinite_update=jnp.zeros((), jnp.int32),
        memory=memory,
    )


def read_loss(state: TrainState) -> tuple[float, TrainState]:
    """Read the mean training loss since the last call, and start anew.

    Args:
      state: The state of the run.

    Returns:
      (mean loss in nats, nan if there was no example; the state with its sum at 0).
    """
    mean = mean_loss(state)
    return mean, state._replace(loss=_zeros(state.loss), loss_weight=_zeros(state.loss_weight))


def mean_loss(state: TrainState) -> float:
    """Read the mean training loss since the last ``read_loss``.

    Args:
      state: The state of the run; on several devices, all processes must call.

    Returns:
      Mean loss in nats, nan if there was no example.
    """
    loss, weight = (float(x) for x in _sums(state.loss, state.loss_weight))
    return loss / weight if weight > 0 else float("nan")


@jax.jit
def _sums(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.sum(x) for x in arrays)


def _zeros(x: jax.Array) -> jax.Array:
    return jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding) if x.committed else jnp.zeros_like(x)
