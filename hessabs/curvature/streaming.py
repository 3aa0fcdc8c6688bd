"""Products summed over batches that are read one after another: a whole data set, on one device or several."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hessabs import batch_axis, loops, programs, trees
from hessabs.curvature import parts
from hessabs.curvature.linearization import Modes, Source, make_source
from hessabs.curvature.passes import Batches, Passes, read
from hessabs.typing import Batch, Operator, Params


def dataset_operator(
    modes: Modes,
    functions: tuple[Callable[..., Any], ...],
    params: Params,
    batches: Batches,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
    **options: Any,
) -> Operator:
    """Make an operator that reads all batches at each product."""
    source = make_source(modes, functions, params, None, **options)
    rest = (trees.Static(Passes(batches)), trees.Static(mesh), trees.Static(progress))
    return Operator(source, rest, _multiply, "in Python")


def _multiply(
    source: Source, passes: trees.Static, mesh: trees.Static, progress: trees.Static, vector: Params
) -> Params:
    if trees.is_traced(vector):
        raise ValueError(loops.READS_IN_PYTHON)
    trees.check_like(vector, source.params, "vector", "params", dtypes=True)
    # One collective ends a product of params that every device has; XLA places those of sharded params.
    on_each = mesh.value is not None and not _is_sharded(vector)
    total = _rows(vector, mesh.value) if on_each else parts.zeros(vector)
    weights: list[Any] = []  # added up on the host: a float32 counts to 16 million
    ahead: deque[Any] = deque()
    for batch in read(passes.value, source):
        for piece in _pieces(batch, mesh.value, on_each):
            one = source._replace(batch=piece)
            if on_each:
                total, weight = _add_on_each(one, vector, total, trees.Static((mesh.value, _is_sharded(piece))))
            else:
                total, weight = _add(one, vector, total)
            weights.append(weight)
            # JAX runs behind Python, so the next batch is read meanwhile.
            loops.keep_pace(ahead, total)
        if progress.value is not None:
            progress.value(batch_axis.num_examples(batch))
    whole = check_total_weight(sum(map(_on_host, weights)))
    return _finish_on_each(total, whole, vector) if on_each else parts.finish(total, whole, vector)


def check_total_weight(weight: float) -> float:
    """Return the weights of all batches together, which must be a positive number."""
    if not 0 < weight < float("inf"):
        raise ValueError(f"The weights of all batches must sum to a positive number, got {weight}.")
    return weight


@programs.jit
def _add(source: Source, vector: Params, total: Params) -> tuple[Params, jax.Array]:
    return parts.add(source, vector, total, jnp.zeros(()))


def _pieces(batch: Batch, mesh: Mesh | None, on_each: bool) -> Iterator[Batch]:
    # What divides among the devices, split over them, and the rest, which each of them computes.
    if mesh is None:
        yield batch
        return
    count = batch_axis.num_examples(batch)
    axes = mesh.axis_names if on_each else mesh.axis_names[:1]
    even = count - count % math.prod(mesh.shape[axis] for axis in axes)
    split, whole = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())
    if even:
        carries, treedef = batch_axis.carries_examples(batch), jax.tree.structure(batch)
        part = batch_axis.map_examples(lambda x: x[:even], batch)
        yield jax.device_put(part, jax.tree.unflatten(treedef, [split if c else whole for c in carries]))
    if count > even:
        yield jax.device_put(batch_axis.map_examples(lambda x: x[even:], batch), whole)


def _on_host(weight: jax.Array) -> float:
    return float(np.sum(np.asarray(weight), dtype=np.float64) if weight.is_fully_addressable else weight.sum())


def _is_sharded(tree: Any) -> bool:
    shardings = [getattr(x, "sharding", None) for x in jax.tree.leaves(tree)]
    return any(s is not None and not s.is_fully_replicated for s in shardings)


def _rows(vector: Params, mesh: Mesh) -> jax.Array:
    # One row a device, all params in it: that a product needs one collective only.
    flat = jax.eval_shape(lambda v: trees.ravel(v)[0], vector)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.device_put(jnp.zeros((mesh.size, flat.size), flat.dtype), sharding)


@programs.jit
def _add_on_each(
    source: Source, vector: Params, total: jax.Array, where: trees.Static
) -> tuple[jax.Array, jax.Array]:
    mesh, split = where.value
    whole, shards = PartitionSpec(), PartitionSpec(mesh.axis_names)
    examples, treedef = jax.tree.flatten(source.batch)
    specs = [shards if split and c else whole for c in batch_axis.carries_examples(source.batch)]

    def add(source: Source, examples: list[Any], vector: Params, total: jax.Array) -> tuple[Any, jax.Array]:
        source = source._replace(batch=jax.tree.unflatten(treedef, examples))
        product, weight = parts.weighted_product(source, vector)
        # What does not divide is computed on every device.
        share = 1.0 if split else 1 / mesh.size
        return total + share * trees.ravel(product)[0].astype(total.dtype)[None], share * weight[None]

    # check_vma=False: differentiating with respect to replicated params must not insert a sum per batch.
    return jax.shard_map(
        add, mesh=mesh, in_specs=(whole, specs, whole, shards), out_specs=(shards, shards), check_vma=False
    )(source._replace(batch=None), examples, vector, total)


@programs.jit
def _finish_on_each(total: jax.Array, weight: Any, like: Params) -> Params:
    _, shape = trees.ravel(like)
    return trees.unravel(jnp.sum(total, axis=0) / weight, shape)
