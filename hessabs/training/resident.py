"""A training set in the memory of an accelerator: a micro-batch is gathered there, not sent there."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hessabs.data import Arrays, Gather, Source

_PART = 0.25  # of the memory of the device: the rest is for the training


def make_gather(source: Source, mesh: Mesh | None = None) -> Gather | None:
    """Put a training set on the device, if that is of use, for ``hessabs.data.reader``'s ``gather``.

    Its batches have the bits of those made on the host. None where they are to come from the host: on a CPU,
    whose memory is the host's, over several devices, and for a set that lies on disk or takes more than a
    quarter of the device's memory.
    """
    if mesh is not None or jax.default_backend() == "cpu" or not isinstance(source, Arrays):
        return None
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
    if sum(array.nbytes for array in jax.tree.leaves(source.arrays)) > _PART * limit:
        return None
    return on_device(source.arrays)


def on_device(arrays: Mapping[str, Any]) -> Gather:
    """Put arrays of shape (N, ...), N below 2**31, on the device and gather rows of them there.

    Several batches at once are one call: on an accelerator a call takes longer than the copy of a short batch.
    There is one small program for each number of places and parts.

    Example:
      >>> gather = on_device({"label": np.array([5, 6, 7], np.int32)})
      >>> [batch["label"] for batch in gather(np.array([2, 0]), np.ones(2, np.float32), 2)]
      [Array([7], dtype=int32), Array([5], dtype=int32)]
    """
    there = jax.device_put(dict(arrays))

    @functools.partial(jax.jit, static_argnums=2)
    def take(arrays: Any, places: jax.Array, num_parts: int) -> list[dict[str, Any]]:
        return [
            jax.tree.map(functools.partial(jnp.take, indices=part, axis=0, mode="clip"), arrays)
            for part in jnp.split(places, num_parts)
        ]

    @functools.lru_cache(64)
    def ones(size: int) -> jax.Array:
        return jax.device_put(np.ones(size, np.float32))

    def weight_of(part: np.ndarray) -> jax.Array:
        return ones(len(part)) if (part == 1).all() else jax.device_put(part)

    def gather(places: np.ndarray, weight: np.ndarray, num_parts: int) -> list[dict[str, Any]]:
        batches = take(there, places.astype(np.int32), num_parts)
        parts = np.split(weight, num_parts)
        return [{**batch, "weight": weight_of(part)} for batch, part in zip(batches, parts, strict=True)]

    return gather
