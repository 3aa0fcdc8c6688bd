"""The devices of a run: one axis, ``data``, over which every batch is split."""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

DATA = "data"


def num_devices(mesh: str | None, devices: int | None) -> int:
    """Read how many devices a run is to use.

    Args:
      mesh: ``"data=N"``, or None.
      devices: N, or None.

    Returns:
      N; without either, 1, or with several processes all devices of all of them.

    Raises:
      ValueError: If the two contradict each other, or N devices are not there.

    Example:
      >>> num_devices("data=1", None), num_devices(None, None)
      (1, 1)
    """
    named = None
    if mesh is not None:
        axis, _, size = mesh.partition("=")
        if axis.strip() != DATA or not size.strip().isdecimal():
            raise ValueError(f"`mesh` must be {DATA}=N, the batch split over N devices, got {mesh!r}.")
        named = int(size)
    if named is not None and devices is not None and named != devices:
        raise ValueError(f"`mesh` and `devices` must agree, got {mesh} and {devices}; one of them is enough.")
    there = jax.device_count()
    wanted = named or devices or (there if jax.process_count() > 1 else 1)
    if not 1 <= wanted <= there:
        raise ValueError(
            f"`devices` must lie in [1, the devices that JAX sees={there}], got {wanted}; on CPUs the variable "
            f"JAX_NUM_CPU_DEVICES={wanted} makes so many."
        )
    if jax.process_count() > 1 and wanted != there:
        raise ValueError(f"`devices` must be all {there} of the {jax.process_count()} processes, got {wanted}.")
    return wanted


def make_mesh(size: int) -> Mesh | None:
    """Make the mesh of a run.

    Args:
      size: Number of devices.

    Returns:
      A mesh with one axis, ``data``; None for one device, for which JAX needs none.
    """
    if size == 1:
        return None
    return Mesh(np.array(jax.devices()[:size]), (DATA,), axis_types=(AxisType.Auto,))


def on_all(tree: Any, mesh: Mesh | None) -> Any:
    """Put arrays on every device, whole.

    Args:
      tree: A pytree of arrays, the same in all processes.
      mesh: The devices, or None: the tree comes back.

    Returns:
      The tree on the devices.
    """
    if mesh is None:
        return tree
    return jax.device_put(jax.tree.map(np.asarray, tree), NamedSharding(mesh, P()))


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Put an array where another one lies; no process asks another one whether it has the same.

    Args:
      array: The whole array, the same in all processes.
      sharding: Where to.

    Returns:
      The array on the devices.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def keep_up(tree: Any, mesh: Mesh | None) -> None:
    """Wait for what several CPU devices compute; on one device, or on another backend, go on at once.

    XLA starts a program for each CPU device from the few threads that also run them, and lets a device with 32
    programs in flight wait. When Python runs so far ahead, one device waits in a collective for another one
    that has no thread left to start, for ever. One program with a collective at a time cannot get there.

    Args:
      tree: What the last program gives.
      mesh: The devices, or None.
    """
    if mesh is not None and mesh.devices.flat[0].platform == "cpu":
        jax.block_until_ready(tree)


def split(batch: Any, mesh: Mesh | None) -> Any:
    """Split a batch over the devices: each gets an equal part of its examples, one behind the other.

    Args:
      batch: A pytree of arrays on the host; of several processes each has the part of its own devices.
      mesh: The devices, or None: the batch comes back.

    Returns:
      The whole batch, of which each device holds a part.
    """
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, P(DATA))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def split_whole(batch: Any, mesh: Mesh | None) -> Any:
    """Split a batch that every process has in full; one that does not divide goes to every device.

    Args:
      batch: A pytree of arrays on the host.
      mesh: The devices, or None: the batch comes back.

    Returns:
      The batch on the devices.
    """
    if mesh is None:
        return batch
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    if num_examples % mesh.size:
        return on_all(batch, mesh)
    rows = own_rows(num_examples, mesh.size, dealt=False)
    return split(jax.tree.map(lambda x: np.asarray(x)[rows], batch), mesh)


def own_rows(num_examples: int, size: int, *, dealt: bool) -> np.ndarray:
    """Say which examples of a batch the devices of this process get, in the order in which they hold them.

    Args:
      num_examples: Examples in the batch, a multiple of ``size``.
      size: Number of devices.
      dealt: Whether example i goes to device ``i % size``, as cards are dealt, so that the first examples,
        those that may be attacked, are spread; otherwise each device gets neighbours.

    Returns:
      Places in the batch, int64.

    Example:
      >>> own_rows(6, 2, dealt=True), own_rows(6, 2, dealt=False)
      (array([0, 2, 4, 1, 3, 5]), array([0, 1, 2, 3, 4, 5]))
    """
    share = num_examples // jax.process_count()
    return all_rows(num_examples, size, dealt=dealt)[jax.process_index() * share :][:share]


@functools.lru_cache(64)
def all_rows(num_examples: int, size: int, *, dealt: bool) -> np.ndarray:
    """Say which examples of a batch the devices get, those of all processes, in order.

    Args:
      num_examples: As for ``own_rows``.
      size: As for ``own_rows``.
      dealt: As for ``own_rows``.

    Returns:
      Places in the batch, int64.
    """
    places = np.arange(num_examples)
    return (places.reshape(-1, size).T if dealt else places.reshape(size, -1)).reshape(-1)
