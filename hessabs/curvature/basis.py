"""The rows of a Krylov basis: where they lie, and what is done with all of them at once.

On the host a basis is one NumPy matrix that is written in place. On devices it is a pytree of JAX arrays with a
leading axis of rows: a single flat leaf, or, where the params are sharded, a leaf for each of theirs, sharded
as it is. Nothing is ravelled then and no row is ever gathered: the memory of a basis divides by the devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from hessabs import trees
from hessabs.curvature.precision import full_precision
from hessabs.typing import Params

_BLOCK_ROWS = 16  # rows that are read at once on a device


def layout(vector: Params, host: bool) -> trees.Static:
    """Say how a pytree becomes a row, for ``to_row`` and ``to_params``."""
    sharded = any(_is_sharded(x) for x in jax.tree.leaves(vector))
    return trees.Static(("tree" if sharded else "host" if host else "flat", trees.shape_of(vector)))


def to_row(vector: Params, form: trees.Static) -> Any:
    """Make a pytree a row, in at least float32."""
    kind, _ = form.value
    dtype = jnp.result_type(jnp.float32, *[jnp.result_type(x) for x in jax.tree.leaves(vector)])
    if kind == "tree":
        return jax.tree.map(lambda x: x.astype(dtype), vector)
    if kind == "host" and not trees.is_traced(vector):  # nothing is compiled
        return np.concatenate([np.asarray(x, dtype).ravel() for x in jax.tree.leaves(vector)])
    return _ravel(vector)


def to_params(rows: Any, form: trees.Static) -> Params:
    """Make rows pytrees again, in the dtypes of the params."""
    kind, shape = form.value
    if kind != "tree":
        return _unravel(rows, shape)
    treedef, shapes = shape.value
    leaves = treedef.flatten_up_to(rows)
    return treedef.unflatten([x.astype(dtype) for x, (_, dtype) in zip(leaves, shapes, strict=True)])


def zeros(like: Any, num_rows: int) -> Any:
    """Make a basis of zeros, whose rows are placed as a row is."""
    if isinstance(like, np.ndarray):
        return np.zeros((num_rows, *like.shape), like.dtype)  # memory is taken as rows are written
    return jax.tree.map(lambda x: _zeros(x, num_rows), like)


def row(basis: Any, index: Any) -> Any:
    """Return one row."""
    if isinstance(basis, np.ndarray):
        return basis[index]
    return _row(basis, index)


def first_rows(basis: Any, number: int) -> Any:
    """Return the first rows."""
    return jax.tree.map(lambda x: x[:number], basis)


def random_row(basis: Any, seed: tuple[int, ...]) -> Any:
    """Draw a row of normal numbers, the same ones for one seed."""
    rng = np.random.default_rng(seed)
    if isinstance(basis, np.ndarray):
        return rng.standard_normal(basis.shape[1]).astype(basis.dtype)
    return trees.normal_like(jax.random.key(int(rng.integers(2**31))), row(basis, 0))


def measure(basis: Any) -> tuple[int, int, np.dtype]:
    """Return the number of rows of a basis, the size of each, and their dtype."""
    leaves = jax.tree.leaves(basis)
    num_rows = leaves[0].shape[0]
    return num_rows, sum(x.size for x in leaves) // num_rows, leaves[0].dtype


@full_precision
def combine(basis: Any, mix: np.ndarray, num_rows: int | None = None) -> Any:
    """Form combinations of the first rows, ``mix`` of shape (combinations, rows read), filled up by zeros."""
    lead = len(mix) if num_rows is None else num_rows
    if isinstance(basis, np.ndarray):
        rows = np.zeros((lead, basis.shape[1]), basis.dtype)
        np.matmul(mix.astype(basis.dtype), basis[: mix.shape[1]], out=rows[: len(mix)])
        return rows
    padded = np.zeros((lead, measure(basis)[0]))  # one program, however many rows are read
    padded[: len(mix), : mix.shape[1]] = mix
    return _combine(padded.astype(measure(basis)[2]), basis)


def project_out(
    basis: Any, built: Any, waiting: tuple[Any, Any], vector: Any, first: int = 0
) -> tuple[Any, Any]:
    """Take the rows of a basis that were built, but for those that wait, out of a vector, once.

    Returns the coefficients of all rows, too. NumPy begins at the first row that the vector is large in.
    """
    if isinstance(basis, np.ndarray):
        coefficients = np.zeros(len(basis), basis.dtype)
        np.matmul(basis[first:built], vector, out=coefficients[first:built])
        coefficients[waiting[0] : waiting[1]] = 0
        return vector - coefficients[first:built] @ basis[first:built], coefficients
    return _project_out(basis, built, waiting, vector)


def set_row(basis: Any, index: Any, vector: Any, norm: Any, keep: Any) -> Any:
    """Write a vector over its norm into a row, in place on the host, if it is to be kept."""
    if isinstance(basis, np.ndarray):
        if keep:
            np.multiply(vector, 1 / norm, out=basis[index])
        return basis
    scale = trees.safe_inverse(norm)
    return jax.tree.map(lambda x, v: x.at[index].set(jnp.where(keep, v * scale, x[index])), basis, vector)


def dot(a: Any, b: Any) -> Any:
    """Inner product of two rows."""
    return a @ b if isinstance(a, np.ndarray) else trees.vdot(a, b)


_ravel = jax.jit(lambda vector: trees.ravel(vector)[0])
_unravel = jax.jit(trees.unravel)


@jax.jit
def _combine(mix: Any, basis: Any) -> Any:
    return jax.tree.map(lambda x: jnp.tensordot(mix.astype(x.dtype), x, axes=1), basis)


@jax.jit
def _row(basis: Any, index: Any) -> Any:
    return jax.tree.map(lambda x: x[index], basis)


@jax.jit
def _project_out(basis: Any, built: Any, waiting: tuple[Any, Any], vector: Any) -> tuple[Any, jax.Array]:
    num_rows, _, dtype = measure(basis)
    height = min(_BLOCK_ROWS, num_rows)

    def one_block(i: Any, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        coefficients, vector = carry
        # The last block begins early rather than reach beyond the basis: rows that were read find nothing more.
        begin = jnp.minimum(i * height, num_rows - height)
        block = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, height), basis)
        index = begin + jnp.arange(height)
        part = jnp.where((index >= waiting[0]) & (index < waiting[1]), 0, _products(block, vector))
        old = jax.lax.dynamic_slice_in_dim(coefficients, begin, height)
        coefficients = jax.lax.dynamic_update_slice_in_dim(coefficients, old + part, begin, 0)
        # Sums, and no matrix products: those do not contract axes that are sharded.
        taken = jax.tree.map(lambda x: jnp.sum(part.reshape(-1, *[1] * (x.ndim - 1)) * x, axis=0), block)
        return coefficients, jax.tree.map(jnp.subtract, vector, taken)

    # Only blocks with rows that were built are read.
    num_blocks = (built + height - 1) // height
    start = jnp.zeros(num_rows, dtype) + jnp.zeros_like(dot(vector, vector))
    coefficients, vector = jax.lax.fori_loop(0, num_blocks, one_block, (start, vector))
    return vector, coefficients


def _products(block: Any, vector: Any) -> jax.Array:
    pairs = zip(jax.tree.leaves(block), jax.tree.leaves(vector), strict=True)
    parts = [jnp.sum(x * v, axis=tuple(range(1, x.ndim))) for x, v in pairs]
    return sum(parts[1:], start=parts[0])


def _is_sharded(leaf: Any) -> bool:
    kind = jax.typeof(leaf) if isinstance(leaf, jax.core.Tracer) else leaf
    sharding = getattr(kind, "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return False
    explicit = AxisType.Explicit in getattr(sharding.mesh, "axis_types", ())
    return explicit or not sharding.is_fully_replicated


def _zeros(like: Any, num_rows: int) -> jax.Array:
    shape = (num_rows, *like.shape)
    if isinstance(like, jax.core.Tracer):
        # Chosen from the row itself: zeros that are made anew have no explicit axes in some versions of JAX.
        return jnp.broadcast_to(jnp.where(False, like, jnp.zeros((), like.dtype))[None], shape)
    if isinstance(like.sharding, NamedSharding):
        spec = jax.sharding.PartitionSpec(None, *like.sharding.spec)
        return jnp.zeros(shape, like.dtype, device=NamedSharding(like.sharding.mesh, spec))
    return jnp.zeros(shape, like.dtype)
