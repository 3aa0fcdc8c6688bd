"""The devices of a run: an axis ``data``, over which batches are split, and others, over which params are."""

import functools
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P

from hessabs.checks import require

DATA = "data"


def read_mesh(mesh: str | None, devices: int | None) -> dict[str, int]:
    """Read the sizes of the axes by name, ``data`` first; nothing where neither is given.

    Example:
      >>> read_mesh("data=4,model=2", None), read_mesh(None, 2), read_mesh(None, None)
      ({'data': 4, 'model': 2}, {'data': 2}, {})
    """
    axes: dict[str, int] = {}
    if devices is not None:
        require("be at least 1", devices=devices)
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

    Without any axes it is all devices of several processes, and one of a single process.
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
    """Split every matrix along its last axis that a further axis of the mesh divides, and nothing else."""
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
    """Say where the arrays of a tree lie, the state of an optimiser say: those of a param where its ``specs``
    put it, the rest everywhere.
    """
    whole = NamedSharding(mesh, P())
    known = {
        (path, leaf.shape): NamedSharding(mesh, spec)
        for (path, leaf), spec in zip(
            jax.tree.leaves_with_path(params),
            jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, P)),
            strict=True,
        )
    }

    def one(path: Any, leaf: Any) -> NamedSharding:
        ends = ((path[i:], leaf.shape) for i in range(len(path)))
        return next((known[end] for end in ends if end in known), whole)

    return jax.tree.map_with_path(one, tree)


def place(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """Put an array, the same in all processes, somewhere; no process asks another one for it."""
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
    """Split a batch, of which each process has the part of its own devices, one behind the other."""
    if mesh is None:
        return batch
    sharding = NamedSharding(mesh, P(DATA))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def split_whole(batch: Any, mesh: Mesh | None) -> Any:
    """Split a batch that every process has in full; one that does not divide goes to every device."""
    if mesh is None:
        return jax.device_put(batch)
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    if num_examples % data_size(mesh):
        return jax.device_put(jax.tree.map(np.asarray, batch), NamedSharding(mesh, P()))
    rows = own_rows(num_examples, data_size(mesh), dealt=False)
    return split(jax.tree.map(lambda x: np.asarray(x)[rows], batch), mesh)


@functools.partial(jax.jit, static_argnames=("size", "mesh", "dealt"))
def first_micro_batch(batch: Any, size: int, mesh: Mesh | None, *, dealt: bool) -> Any:
    """Take the first micro-batch, of ``size`` examples, out of several: the same examples on any devices."""
    if mesh is None or not dealt:
        first = jax.tree.map(lambda x: x[:size], batch)
    else:  # each device holds its examples of all of them, one behind the other
        devices = data_size(mesh)
        first = jax.tree.map(
            lambda x: x.reshape(devices, -1, *x.shape[1:])[:, : size // devices].reshape(size, *x.shape[1:]),
            batch,
        )
    return first if mesh is None else jax.lax.with_sharding_constraint(first, NamedSharding(mesh, P(DATA)))


@functools.lru_cache(64)
def own_rows(num_examples: int, size: int, *, dealt: bool) -> np.ndarray:
    """Say which examples of a batch the devices of this process get, in the order in which they hold them.

    ``dealt``, example i goes to device ``i % size``, as cards are dealt, so that the first examples, those that
    may be attacked, are spread; otherwise each device gets neighbours.

    Example:
      >>> own_rows(6, 2, dealt=True), own_rows(6, 2, dealt=False)
      (array([0, 2, 4, 1, 3, 5]), array([0, 1, 2, 3, 4, 5]))
    """
    places, share = np.arange(num_examples), num_examples // jax.process_count()
    rows = places.reshape(-1, size).T.reshape(-1) if dealt else places
    return rows[jax.process_index() * share :][:share]
