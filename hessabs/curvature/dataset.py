"""Products summed over many batches: a whole data set, or one batch in parts that fit a memory budget.

The sum is weighted by the number of examples, so a smaller last batch is exact. It is kept in at least float32.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from hessabs import trees
from hessabs.curvature import loops
from hessabs.curvature.linearization import Source, multiply
from hessabs.curvature.operators import HESSIAN
from hessabs.typing import Batch, LossFn, Params

_READ_AHEAD = 2  # batches whose products are under way while the next one is read


@loops.driven_by_python(traceable=False)
def stream_product(
    source: Source, read: trees.Static, mesh: trees.Static, progress: trees.Static, vector: Params
) -> Params:
    """Multiply, reading all batches; the function of the operators that ``dataset_hessian`` makes.

    Args:
      source: What the operator is made of; its batch is None.
      read: ``() -> iterable of batches``.
      mesh: A ``jax.sharding.Mesh``, or None.
      progress: Called with the number of examples of each batch, or None.
      vector: A pytree like the params.

    Returns:
      A pytree like the params.

    Raises:
      ValueError: If the data set is empty, ``vector`` does not look like the params, or the call is traced.
    """
    loops.choose(None, Partial(stream_product), vector)
    trees.check_like(vector, source.params, "vector", "params")
    total = _zeros(vector) if mesh.value is None else _sharded_zeros(vector, mesh.value)
    seen = 0
    ahead: deque[Any] = deque()
    for batch in read.value():
        count = _num_examples(batch)
        if mesh.value is None:
            total = _jitted_add(source._replace(batch=batch), count, vector, total)
        else:
            total = _add_on_mesh(source, batch, mesh.value, vector, total)
        seen += count
        # JAX runs behind Python, so the next batch is read meanwhile; waiting for an old sum bounds how many
        # batches are in memory.
        ahead.append(total)
        if len(ahead) > _READ_AHEAD:
            jax.block_until_ready(ahead.popleft())
        if progress.value is not None:
            progress.value(count)
    if seen == 0:
        raise ValueError("The data set is empty: iterating over `batches` gave no batch.")
    return (_jitted_finish if mesh.value is None else _jitted_finish_sharded)(total, seen, vector)


@loops.driven_by_python(traceable=True)
def split_product(source: Source, size: trees.Static, vector: Params) -> Params:
    """Multiply, one part of the batch after another, so that only the residuals of one part exist.

    Args:
      source: What the operator is made of; its functions are means over examples that do not influence each
        other.
      size: Examples in a part; the last one may be smaller.
      vector: A pytree like the params.

    Returns:
      A pytree like the params.

    Raises:
      ValueError: If ``vector`` does not look like the params.
    """
    if loops.choose(None, source, vector) == "device":
        return _jitted_split_product(source, size, vector)
    num_examples = _num_examples(source.batch)
    total = _zeros(vector)
    for start in range(0, num_examples, size.value):
        part = trees.Static(min(size.value, num_examples - start))
        total = _jitted_add_part(source, start, part, vector, total)
    return _jitted_finish(total, num_examples, vector)


def dataset_hessian(
    loss_fn: LossFn,
    params: Params,
    batches: Iterable[Batch],
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Partial:
    """Make the Hessian of the mean loss over a whole data set an operator.

    Each product is one pass over ``batches``, weighted by batch size, in the memory of a few batches: the next
    batch is read while the present one is computed. Batches of one shape compile once.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the batch.
      params: A pytree of floating-point arrays.
      batches: An iterable that starts anew at each product: a list, a loader, but no generator.
      mesh: Devices over which every batch is split along its examples, in a mesh with one axis. Each device
        sums its part over the whole pass; one collective ends the product. Examples that do not divide are
        computed on every device and weighted for it.
      progress: Called after each batch with its number of examples, as ``tqdm(...).update`` takes it.

    Returns:
      A callable pytree: ``operator(vector) -> pytree like params``. It reads data in Python: loops over it run
      on the host, and it cannot be traced.

    Raises:
      ValueError: If a param is no floating-point array, ``batches`` can be iterated over only once, or the mesh
        has several axes; at a product, if there is no batch.

    Example:
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> uneven = [jnp.ones((2, 1)), jnp.ones((2, 1)), 3 * jnp.ones((1, 1))]
      >>> dataset_hessian(loss, jnp.zeros(1), uneven)(jnp.ones(1))  # 2 (4 * 1 + 9) / 5
      Array([5.2], dtype=float32)
    """
    trees.check_floating(params, "params")
    if isinstance(batches, Iterator):
        raise ValueError(
            f"`batches` must start anew at each product, but {type(batches).__name__} can be read only once; "
            "pass a list, or an object whose __iter__ starts again."
        )
    if mesh is not None and len(mesh.axis_names) != 1:
        raise ValueError(f"`mesh` must have one axis, over the examples, got {mesh.axis_names}.")
    functions = (trees.as_partial(loss_fn),)
    source = Source(trees.Static(HESSIAN), functions, params, None, trees.Static(None))
    return Partial(
        stream_product, source, trees.Static(lambda: batches), trees.Static(mesh), trees.Static(progress)
    )


def check_deterministic(operator: Partial, vector: Params, *, rtol: float = 1e-4) -> None:
    """Check that two products of a data-set operator with one vector agree.

    Eigen-solvers need one and the same matrix at every product.

    Args:
      operator: What ``dataset_hessian`` made.
      vector: A pytree like the params.
      rtol: How far the two may lie apart, relative to the first one's norm.

    Raises:
      ValueError: If they do not agree, saying whether to look at shuffling, at augmentation or dropout keys in
        the data, or at the loss.
    """
    if getattr(operator, "func", None) is not stream_product:
        raise ValueError(f"`operator` must come from dataset_hessian, got {operator!r}.")
    read = operator.args[1].value
    first, second = operator(vector), operator(vector)
    apart = trees.normalize(jax.tree.map(jnp.subtract, first, second))[1]
    size = trees.normalize(first)[1]
    if apart <= rtol * size:
        return
    one, two = _fingerprint(read()), _fingerprint(read())
    if one.shape == two.shape and np.array_equal(one, two):
        advice = "the batches are the same in both passes: look at dropout, or another random draw in the loss"
    elif np.allclose(one.sum(0), two.sum(0), rtol=1e-6):
        advice = (
            "the examples come in another order: stop shuffling, and put batch norm into evaluation mode, "
            "since only a loss that mixes the examples of a batch sees the order"
        )
    else:
        advice = (
            "the examples themselves differ: look at augmentation and at dropout keys that ride in the batch"
        )
    raise ValueError(f"Two passes over the data differ by {float(apart / size):.1e} of the product; {advice}.")


def _fingerprint(batches: Iterable[Batch]) -> np.ndarray:
    # One row a batch: the sums of each leaf over the batch, and of its squares.
    rows = [
        [
            f(np.asarray(x, np.float64))
            for x in jax.tree.leaves(batch)
            for f in (np.sum, lambda x: np.sum(x * x))
        ]
        for batch in batches
    ]
    return np.array(rows)


def _num_examples(batch: Batch) -> int:
    return jax.tree.leaves(batch)[0].shape[0]


def _zeros(vector: Params) -> Params:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), vector)


def _add(source: Source, weight: Any, vector: Params, total: Params) -> Params:
    product = multiply(source, None, vector)
    return jax.tree.map(lambda t, p: t + weight * p.astype(t.dtype), total, product)


def _add_part(source: Source, start: Any, size: trees.Static, vector: Params, total: Params) -> Params:
    part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, size.value), source.batch)
    return _add(source._replace(batch=part), size.value, vector, total)


def _finish(total: Params, count: Any, like: Params) -> Params:
    return jax.tree.map(lambda t, x: (t / count).astype(x.dtype), total, like)


def _split_product(source: Source, size: trees.Static, vector: Params) -> Params:
    num_examples = _num_examples(source.batch)
    whole, rest = divmod(num_examples, size.value)
    total = jax.lax.fori_loop(
        0, whole, lambda i, t: _add_part(source, i * size.value, size, vector, t), _zeros(vector)
    )
    if rest:
        total = _add_part(source, num_examples - rest, trees.Static(rest), vector, total)
    return _finish(total, num_examples, vector)


_jitted_add = jax.jit(_add)
_jitted_add_part = jax.jit(_add_part)
_jitted_finish = jax.jit(_finish)
_jitted_split_product = jax.jit(_split_product)


def _sharded_zeros(vector: Params, mesh: Mesh) -> jax.Array:
    # One row a device, all params in it: that a product needs one collective only.
    flat, _ = trees.ravel(vector)
    sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
    return jax.device_put(jnp.zeros((mesh.size, flat.size), flat.dtype), sharding)


def _add_on_mesh(source: Source, batch: Batch, mesh: Mesh, vector: Params, total: jax.Array) -> jax.Array:
    count = _num_examples(batch)
    even = count - count % mesh.size
    if even:
        sharding = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        shards = jax.device_put(jax.tree.map(lambda x: x[:even], batch), sharding)
        total = _jitted_add_sharded(source, shards, even / mesh.size, vector, total, trees.Static((mesh, True)))
    if count > even:
        rest = jax.tree.map(lambda x: x[even:], batch)
        weight = (count - even) / mesh.size
        total = _jitted_add_sharded(source, rest, weight, vector, total, trees.Static((mesh, False)))
    return total


@jax.jit
def _jitted_add_sharded(
    source: Source, batch: Batch, weight: Any, vector: Params, total: jax.Array, where: trees.Static
) -> jax.Array:
    mesh, split = where.value
    whole, shards = PartitionSpec(), PartitionSpec(*mesh.axis_names)

    def add(source: Source, batch: Batch, weight: jax.Array, vector: Params, total: jax.Array) -> jax.Array:
        product, _ = trees.ravel(multiply(source._replace(batch=batch), None, vector))
        return total + weight * product.astype(total.dtype)[None]

    # check_vma=False: differentiating with respect to replicated params must not insert a sum per batch.
    return jax.shard_map(
        add,
        mesh=mesh,
        in_specs=(whole, shards if split else whole, whole, whole, shards),
        out_specs=shards,
        check_vma=False,
    )(source, batch, weight, vector, total)


@jax.jit
def _jitted_finish_sharded(total: jax.Array, count: Any, like: Params) -> Params:
    _, shape = trees.ravel(like)
    return trees.unravel(jnp.sum(total, axis=0) / count, shape)
