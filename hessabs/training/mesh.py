"""The devices of a run: an axis ``data``, over which batches are split, and others, over which params are."""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

DATA = "data"


def read_mesh(mesh: str | None, devices: int | None) -> dict[str, int]:
    """Read the axes of a mesh, without looking for its devices.

    Args:
      mesh: ``"data=N"``, or with further axes, ``"data=N,model=M"``; None.
      devices: Their number; None.

    Returns:
      Sizes by axis, ``data`` first; without either, nothing.

    Raises:
      ValueError: If that is no mesh, or the two contradict each other.

    Example:
      >>> read_mesh("data=4,model=2", None), read_mesh(None, 2), read_mesh(None, None)
      ({'data': 4, 'model': 2}, {'data': 2}, {})
    """
    axes: dict[str, int] = {}
    if devices is not None and devices < 1:
        raise ValueError(f"`devices` must be at least 1, got {devices}.")
    for part in mesh.split(",") if mesh else ():
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*", part)
        if match is None or int(match[2]) < 1 or match[1] in axes:
            raise ValueError(f"`mesh` must be data=N, or data=N,model=M, got {mesh!r}.")
        axes[match[1]] = int(match[2])
    if axes and next(iter(axes)) != DATA:
        raise ValueError(f"`mesh` must begin with data=N, over which batches are split, got {mesh!r}.")
    if axes and devices is not None and math.prod(axes.values()) != devices:
        raise ValueError(f"`mesh` and `devices` must agree, got {mesh} and {devices}; one of them is enough.")
    return axes or ({} if devices is None else {DATA: devices})


def make_mesh(axes: dict[str, int]) -> Mesh | None:
    """Make the mesh of a run; None for one device, for which JAX needs none.

    Args:
      axes: As of ``read_mesh``; without any, all devices of several processes, and one of a single process.

    Raises:
      ValueError: If so many devices are not there.
    """
    there = jax.device_count()
    axes = axes or {DATA: there if jax.process_count() > 1 else 1}
    wanted = math.prod(axes.values())
    if wanted > there:
        raise ValueError(
            f"`devices` must lie in [1, the devices that JAX sees={there}], got {wanted}; on CPUs the variable "
            f"JAX_NUM_CPU_DEVICES={wanted} makes so many."
        )
    if jax.process_count() > 1 and wanted != there:
        raise ValueError(f"`devices` must be all {there} of the {jax.process_count()} processes, got {wanted}.")
    if wanted == 1:
        return None
    places = np.array(jax.devices()[:wanted]).reshape(tuple(axes.values()))
    return Mesh(places, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def data_size(mesh: Mesh | None) -> int:
    """Return over how many devices a batch is split."""
    return 1 if mesh is None else mesh.shape[DATA]


def default_partition(mesh: Mesh, params: Any) -> Any:
    """Split every matrix along its last axis that a further axis of the mesh divides; the rest is everywhere.

    Returns:
      A tree of ``PartitionSpec``.
    """
    others = {name: size for name, size in mesh.shape.items() if name != DATA}

    def spec(x: Any) -> P:
        names: list[str | None] = [None] * x.ndim
        for name, size in others.items():
            free = [i for i in range(x.ndim) if names[i] is None and x.shape[i] % size == 0 and x.ndim > 1]
            if free:
                names[free[-1]] = name
        return P(*names)

    return jax.tree.map(spec, params)


def shardings(tree: Any, params: Any, specs: Any, mesh: Mesh) -> Any:
    """Say where the arrays of a tree lie: those of a param where it lies, the rest everywhere.

    Args:
      tree: Params, an average or momenta of them, the state of an optimiser.
      params: The params.
      specs: Their ``PartitionSpec``, a tree like them.
      mesh: The devices.
    """
    whole = NamedSharding(mesh, P())
    keys = [(path, leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]
    is_spec = lambda x: isinstance(x, P)  # noqa: E731
    known = dict(
        zip(keys, (NamedSharding(mesh, s) for s in jax.tree.leaves(specs, is_leaf=is_spec)), strict=True)
    )

    def one(path: Any, leaf: Any) -> NamedSharding:
        return next(
            (
                known[tuple(path[i:]), leaf.shape]
                for i in range(len(path))
                if (tuple(path[i:]), leaf.shape) in known
            ),
            whole,
        )

    return jax.tree_util.tree_map_with_path(one, tree)


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


def wait_for(tree: Any, mesh: Mesh | None) -> None:
    """Wait for what several CPU devices compute; on one device, or on another backend, go on at once.

    XLA starts a program for each CPU device from the few threads that also run them, and lets a device with 32
    programs in flight wait. When Python runs so far ahead, one device waits in a collective for another one
    that has no thread left to start, for ever. One program with a collective at a time cannot get there.
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
      mesh: The devices, or None for one.

    Returns:
      The batch on the devices.
    """
    if mesh is None:
        return jax.device_put(batch)
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    if num_examples % data_size(mesh):
        return on_all(batch, mesh)
    rows = own_rows(num_examples, data_size(mesh), dealt=False)
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
