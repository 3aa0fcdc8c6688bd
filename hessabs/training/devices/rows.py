"""The state of a run on several devices: a row for each, of the fields that micro-batches change.

Sums have as their total what one device would have; the running statistics of batch norm have as their mean
what is used between updates; the keys of dropout are the same in all rows. What a robust objective carries goes
with the examples of a micro-batch: each device has the part of its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs.training.devices.mesh import DATA
from hessabs.training.state import TrainState

SUMMED = ("gradient", "weight", "loss", "loss_weight", "square", "parts")
AVERAGED = ("model_state",)
FIRST = ("nonfinite_update",)
SPLIT = ("memory",)
PER_DEVICE = (*SUMMED, *AVERAGED, *FIRST)
"""The fields of ``TrainState`` that have a row for each device."""


def row_specs() -> TrainState:
    """Say how the fields of a state with rows lie on the devices: a ``TrainState`` of ``PartitionSpec``."""
    specs: Any = (P(DATA) if name in PER_DEVICE + SPLIT else P() for name in TrainState._fields)
    return TrainState(*specs)


def check_model_state(model_state: Any, name: str) -> None:
    """Check that what a network carries beside its params can be joined over devices.

    Args:
      model_state: Its collections beside the params.
      name: The name of the network.

    Raises:
      ValueError: If it holds anything but floating-point arrays and the keys of ``layers.Dropout``.
    """
    for collection, tree in model_state.items():
        if collection != "dropout" and not all(map(is_mean, jax.tree.leaves(tree))):
            raise ValueError(f"`devices` must be 1 for {name}: its {collection} is no mean over devices.")


def is_mean(x: Any) -> bool:
    """Tell whether an array of a network's state is a mean over devices, and not a key that all have.

    Args:
      x: An array of any shape.

    Returns:
      True for a floating-point array.
    """
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def spread(state: TrainState, mesh: Mesh) -> TrainState:
    """Put the state of one device on several: sums on the first, statistics on all.

    Args:
      state: As one device has it.
      mesh: The devices.

    Returns:
      The state on the mesh, equal to it in total.
    """

    def rows(name: str, x: Any) -> np.ndarray:
        whole = np.broadcast_to(np.asarray(x)[None], (mesh.size, *np.shape(x)))
        if name in SUMMED:
            whole = whole * (np.arange(mesh.size) == 0).reshape(-1, *(1,) * np.ndim(x)).astype(whole.dtype)
        return whole

    per_device, whole = NamedSharding(mesh, P(DATA)), NamedSharding(mesh, P())
    return TrainState(
        **{
            name: jax.device_put(jax.tree.map(functools.partial(rows, name), field), per_device)
            if name in PER_DEVICE
            else jax.device_put(jax.tree.map(np.asarray, field), per_device)
            if name in SPLIT
            else jax.device_put(jax.tree.map(np.asarray, field), whole)
            for name, field in state._asdict().items()
        }
    )


@jax.jit
def collect(state: TrainState) -> TrainState:
    """Return the state as one device would have it: what measurements, accuracy and progress read.

    Args:
      state: The state on a mesh.

    Returns:
      The state without the rows.
    """
    fields = state._asdict()
    return TrainState(
        **fields
        | {name: jax.tree.map(lambda x: jnp.sum(x, 0, dtype=x.dtype), fields[name]) for name in SUMMED}
        | {name: jax.tree.map(_joined, fields[name]) for name in AVERAGED}
        | {name: jnp.max(fields[name]) for name in FIRST}
    )


def _joined(x: jax.Array) -> jax.Array:
    return jnp.mean(x, 0) if is_mean(x) else jnp.max(x, 0)
