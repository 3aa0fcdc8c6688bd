"""The Krylov process behind ``lanczos``, ``eigsh`` and ``spectral_density``: one basis, one projected matrix.

The basis is one matrix of fixed size whose rows are orthonormal vectors. Row j is multiplied by the operator,
the product is orthogonalised against all rows built so far, and what remains becomes the next row. With one
start vector this is the Lanczos process with full re-orthogonalisation; with b start vectors it is its band
form (Ruhe), in which a row is multiplied b rows after it was built, and in which directions that vanish are
simply dropped.

All coefficients of the orthogonalisation are kept, not only the two diagonals. So ``A Q_j = Q H_j`` holds to
rounding whatever the operator is, restarted or not, and the residual of a Ritz pair follows from H alone.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees
from hessabs.curvature import loops
from hessabs.typing import MatVec


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
    state = KrylovState(basis, projected, 0, 0, True, 0, 0)
    for vector in vectors:
        state, _ = append(state, vector / xp.maximum(xp.max(xp.abs(vector)), 1e-37), xp)
    return state


def append(state: KrylovState, vector: Any, xp: Any) -> tuple[KrylovState, Any]:
    """Orthogonalise a vector against the basis and make what remains the next row.

    On the host only the rows built so far are read, and the row is written in place.

    Args:
      state: The basis; it has room for one more row.
      vector: Shape (size,).
      xp: ``numpy`` or ``jax.numpy``.

    Returns:
      The new state, in which ``built`` has grown by one unless nothing but rounding remained, and the
      coefficients of the vector in the basis, shape (rows,).
    """
    host = xp is np
    rows = state.basis[: state.built] if host else state.basis
    before = xp.sqrt(vector @ vector)
    coefficients = xp.zeros(state.basis.shape[0], state.basis.dtype)
    # Once would leave rounding errors of the size of what was removed; twice is enough (Parlett, Kahan).
    for _ in range(2):
        part = rows @ vector
        vector = vector - part @ rows
        if host:
            coefficients[: state.built] += part
        else:
            coefficients = coefficients + part
    norm = xp.sqrt(vector @ vector)
    room = state.built < min(state.basis.shape)
    keep = (norm > 10 * np.finfo(state.basis.dtype).eps * before) & room
    if host:
        if keep:
            state.basis[state.built] = vector / norm
            coefficients[state.built] = norm
        return state._replace(built=state.built + int(keep)), coefficients
    row = jnp.where(keep, vector * trees.safe_inverse(norm), 0)
    coefficients = coefficients.at[state.built].add(jnp.where(keep, norm, 0))
    basis = state.basis.at[state.built].set(jnp.where(keep, row, state.basis[state.built]))
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
        product = np.asarray(multiply(matvec, shape, state.basis[state.multiplied]))
        if not np.isfinite(product).all():
            return state._replace(finite=False, num_matvecs=state.num_matvecs + 1)
        column = state.multiplied
        state, state.projected[:, column] = append(state, product, np)
        state = state._replace(multiplied=column + 1, num_matvecs=state.num_matvecs + 1)
    return state


def multiply(matvec: MatVec, shape: trees.Static, row: Any) -> jax.Array:
    """Multiply one row: an operator is compiled together with cutting and joining, another callable is not."""
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


_jitted_expand = jax.jit(_expand)
_jitted_multiply = jax.jit(_multiply)
_jitted_unravel = jax.jit(trees.unravel)
_jitted_ravel = jax.jit(lambda tree: trees.ravel(tree)[0])
