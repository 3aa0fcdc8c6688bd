"""The Krylov process behind ``lanczos``, ``eigsh`` and ``spectral_density``: one basis, one projected matrix.

The basis is one matrix of fixed size whose rows are orthonormal vectors. Row j is multiplied by the operator,
the product is orthogonalised against all rows built so far, and what remains becomes the next row. With one
start vector this is the Lanczos process with full re-orthogonalisation; with b start vectors it is its band
form (Ruhe), in which a row is multiplied b rows after it was built, and in which directions that vanish are
simply dropped.

All coefficients of the orthogonalisation are kept, not only the two diagonals. So ``A Q_j = Q H_j`` holds to
rounding whatever the operator is, restarted or not, and the residual of a Ritz pair follows from H alone.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import programs, trees
from hessabs.curvature import loops
from hessabs.curvature.precision import full_precision
from hessabs.typing import MatVec

_BLOCK_ROWS = 16  # rows that are read at once on a device
# What is left of a product is rounding, and no direction, below so many eps of its norm. The products carry
# some tens of eps themselves, and how many depends on the processor.
_ROUNDING = 50


class KrylovState(NamedTuple):
    """A basis and the operator projected on it; what an interrupted run needs to go on.

    The arrays are NumPy's on the host, where rows are written in place, and JAX's on a device.
    """

    basis: Any  # shape (rows, size), at least float32: the first `built` rows are orthonormal
    projected: Any  # shape (rows, rows): column j holds the coefficients of A q_j; float64 on the host
    multiplied: Any  # int: rows that were multiplied
    built: Any  # int: rows that were built, at least `multiplied`
    finite: Any  # bool: False when a product was not finite; the process has then ended
    num_matvecs: Any  # int: products computed, over all restarts
    settled_at: Any  # int: products before which `eigsh` does not believe what it found
    known: Any  # shape (k,): what `eigsh` had found when the space was last exhausted; NaN before


def start(vectors: Any, num_rows: int, xp: Any) -> KrylovState:
    """Begin with the span of some vectors.

    Args:
      vectors: Shape (b, size). Zero or dependent ones are dropped.
      num_rows: Rows of the basis, more than b.
      xp: ``numpy`` or ``jax.numpy``: where the state lives.

    Returns:
      A state with no row multiplied.
    """
    basis = xp.zeros((num_rows, vectors.shape[1]), vectors.dtype)
    projected = xp.zeros((num_rows, num_rows), np.float64 if xp is np else vectors.dtype)
    state = KrylovState(basis, projected, 0, 0, True, 0, 0, np.zeros(0))
    for vector in vectors:
        state, _ = append(state, vector / xp.maximum(xp.max(xp.abs(vector)), 1e-37), xp)
    return state


def append(state: KrylovState, vector: Any, xp: Any, first: int = 0) -> tuple[KrylovState, Any]:
    """Orthogonalise a vector against the basis and make what remains the next row.

    Args:
      state: The basis; it has room for one more row.
      vector: Shape (size,).
      xp: ``numpy`` or ``jax.numpy``.
      first: The first row that the vector is known to have more than rounding of; only NumPy makes use of it.

    Returns:
      The new state, in which ``built`` has grown by one unless nothing but rounding remained, and the
      coefficients of the vector in the basis, shape (rows,).
    """
    return _append_host(state, vector, first) if xp is np else _append_device(state, vector)


def _append_host(state: KrylovState, vector: np.ndarray, first: int) -> tuple[KrylovState, np.ndarray]:
    rows = state.basis[: state.built]
    coefficients = np.zeros(state.basis.shape[0], state.basis.dtype)
    before = norm = math.sqrt(vector @ vector)
    # The first pass removes what is large, the next one what rounding left of it: reading only the rows that
    # were built, and in the first pass only those that the vector can be large in. More passes if much was
    # removed.
    for number in range(4):
        begin, last = (0 if number else first), norm
        part = rows[begin:] @ vector
        vector = vector - part @ rows[begin:]
        coefficients[begin : state.built] += part
        norm = math.sqrt(vector @ vector)
        if number and norm >= last / 2:
            break
    room = state.built < min(state.basis.shape)
    if not (room and norm > _ROUNDING * np.finfo(state.basis.dtype).eps * before):
        return state, coefficients
    np.multiply(vector, 1 / norm, out=state.basis[state.built])
    coefficients[state.built] = norm
    return state._replace(built=state.built + 1), coefficients


@full_precision
def _append_device(state: KrylovState, vector: jax.Array) -> tuple[KrylovState, jax.Array]:
    num_rows, size = state.basis.shape
    coefficients = jnp.zeros(num_rows, state.basis.dtype)
    before = jnp.sqrt(vector @ vector)
    height = min(_BLOCK_ROWS, num_rows)

    def project_out(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        coefficients, vector = carry
        # The last block begins early rather than reach beyond the basis: rows that were read find nothing more.
        begin = jnp.minimum(i * height, num_rows - height)
        block = jax.lax.dynamic_slice(state.basis, (begin, 0), (height, size))
        part = block @ vector
        old = jax.lax.dynamic_slice(coefficients, (begin,), (height,))
        coefficients = jax.lax.dynamic_update_slice(coefficients, old + part, (begin,))
        return coefficients, vector - part @ block

    # Once would leave rounding errors of the size of what was removed; twice is enough (Parlett, Kahan). Only
    # blocks with rows that were built are read.
    num_blocks = (state.built + height - 1) // height
    for _ in range(2):
        coefficients, vector = jax.lax.fori_loop(0, num_blocks, project_out, (coefficients, vector))
    norm = jnp.sqrt(vector @ vector)
    room = state.built < min(state.basis.shape)
    keep = (norm > _ROUNDING * jnp.finfo(state.basis.dtype).eps * before) & room
    row = jnp.where(keep, vector * trees.safe_inverse(norm), state.basis[state.built])
    coefficients = coefficients.at[state.built].add(jnp.where(keep, norm, 0))
    basis = state.basis.at[state.built].set(row)
    return state._replace(basis=basis, built=state.built + keep.astype(int)), coefficients


def expand(
    matvec: MatVec, shape: trees.Static, state: KrylovState, num_multiplied: int, loop: loops.Loop
) -> KrylovState:
    """Multiply rows until ``num_multiplied`` are, or no row is left, or a product is not finite.

    Args:
      matvec: The operator, on pytrees.
      shape: How a row becomes a pytree, from ``trees.ravel``.
      state: Where to go on from. On the host its arrays are changed in place.
      num_multiplied: Below the number of rows.
      loop: ``"host"`` or ``"device"``.

    Returns:
      The new state.
    """
    if loop == "device":
        run = _jitted_expand if loops.is_compiled(matvec) and not trees.is_traced(matvec, state) else _expand
        return run(matvec, shape, state, num_multiplied)
    while state.multiplied < min(num_multiplied, state.built) and state.finite:
        state = store(state, np.asarray(multiply(matvec, shape, state.basis[state.multiplied])))
    return state


def store(state: KrylovState, product: np.ndarray) -> KrylovState:
    """Take the product of the next row into a state on the host; its arrays are changed in place.

    Args:
      state: A state with a row that is not multiplied yet.
      product: The operator times that row, shape (size,).

    Returns:
      The new state; unless the product was finite, only that it was not.
    """
    num_matvecs, column = state.num_matvecs + 1, state.multiplied
    if not np.isfinite(product).all():
        return state._replace(finite=False, num_matvecs=num_matvecs)
    # The operator is symmetric: row `column` of what was projected so far says where its column is not
    # rounding.
    row = np.abs(state.projected[column, :column])
    coupled = np.flatnonzero(row > 100 * np.finfo(state.basis.dtype).eps * np.max(row, initial=0))
    first = int(coupled[0]) if coupled.size else column
    state, state.projected[:, column] = append(state, product, np, first)
    return state._replace(multiplied=column + 1, num_matvecs=num_matvecs)


def multiply(matvec: MatVec, shape: trees.Static, row: Any) -> jax.Array:
    """Multiply one row: an operator is compiled together with cutting and joining, another callable is not.

    Args:
      matvec: The operator, on pytrees.
      shape: How a row becomes a pytree, from ``trees.ravel``.
      row: Shape (size,).

    Returns:
      The operator times the row, shape (size,).

    Raises:
      ValueError: If the product does not look like what was multiplied.
    """
    if loops.is_compiled(matvec):
        return _jitted_multiply(matvec, shape, row)
    product = matvec(_jitted_unravel(row, shape))
    return _checked_ravel(product, shape)


def _multiply(matvec: MatVec, shape: trees.Static, row: Any) -> jax.Array:
    return _checked_ravel(matvec(trees.unravel(row, shape)), shape)


def _checked_ravel(product: Any, shape: trees.Static) -> jax.Array:
    treedef, leaves = shape.value
    want = jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    trees.check_like(product, want, "matvec(v0)", "v0")
    return _jitted_ravel(product)


def _expand(matvec: MatVec, shape: trees.Static, state: KrylovState, num_multiplied: Any) -> KrylovState:
    def step(state: KrylovState) -> KrylovState:
        column = state.multiplied
        product = _multiply(matvec, shape, state.basis[column]).astype(state.basis.dtype)
        finite = jnp.isfinite(product).all()
        grown, coefficients = append(state, jnp.where(finite, product, 0), jnp)
        projected = grown.projected.at[:, column].set(coefficients)
        return grown._replace(
            projected=projected,
            multiplied=column + finite,
            finite=finite,
            num_matvecs=state.num_matvecs + 1,
        )

    def proceed(state: KrylovState) -> Any:
        return (state.multiplied < jnp.minimum(num_multiplied, state.built)) & state.finite

    return jax.lax.while_loop(proceed, step, jax.tree.map(jnp.asarray, state))


_jitted_expand = programs.jit(_expand)
_jitted_multiply = programs.jit(_multiply)
_jitted_unravel = jax.jit(trees.unravel)
_jitted_ravel = jax.jit(lambda tree: trees.ravel(tree)[0])
