"""A training set in the memory of an accelerator: a micro-batch is gathered there, not sent there."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hessabs.data import Gather

_PART = 0.25  # of the memory of the device: the rest is for the training


def make_gather(arrays: Mapping[str, np.ndarray], mesh: Mesh | None = None) -> Gather | None:
    """Put a training set on the device, if that is of use.

    Args:
      arrays: Arrays of shape (N, ...), uint8 images and labels.
      mesh: The devices, or None for one.

    Returns:
      What ``hessabs.data.reader`` takes as ``gather``; its batches have the bits of those made on the host.
      None where batches are to come from the host: on a CPU, whose memory is the host's, over several devices,
      and if the set takes more than a quarter of the device's memory.
    """
    if mesh is not None or jax.default_backend() == "cpu":
        return None
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if sum(array.nbytes for array in arrays.values()) > _PART * limit:
        return None
    return on_device(arrays)


def on_device(arrays: Mapping[str, np.ndarray]) -> Gather:
    """Put arrays on the device and gather rows of them there.

    Args:
      arrays: Arrays of shape (N, ...), N below 2**31.

    Returns:
      ``gather(places, weight) -> batch``, arrays on the device; one small program for each number of places.

    Example:
      >>> gather = on_device({"label": np.array([5, 6, 7], np.int32)})
      >>> gather(np.array([2, 0]), np.ones(2, np.float32))["label"]
      Array([7, 5], dtype=int32)
    """
    there = jax.device_put(dict(arrays))

    @jax.jit
    def take(arrays: dict[str, jax.Array], places: jax.Array) -> dict[str, jax.Array]:
        return {name: jnp.take(array, places, axis=0, mode="clip") for name, array in arrays.items()}

    @functools.lru_cache(64)
    def ones(size: int) -> jax.Array:
        return jax.device_put(np.ones(size, np.float32))

    def gather(places: np.ndarray, weight: np.ndarray) -> dict[str, jax.Array]:
        whole = bool((weight == 1).all())
        return {
            **take(there, places.astype(np.int32)),
            "weight": ones(len(weight)) if whole else jax.device_put(weight),
        }

    return gather
