"""The Krylov process behind ``lanczos``, ``eigsh`` and ``spectral_density``: one basis, one projected matrix.

The rows of a basis of fixed size are orthonormal vectors. Row j is multiplied by the operator, the product is
orthogonalised against all rows built so far, and what remains becomes the next row. With one start vector this
is the Lanczos process with full re-orthogonalisation; with b start vectors it is its band form (Ruhe), in which
a row is multiplied b rows after it was built, and in which directions that vanish are simply dropped.

All coefficients of the orthogonalisation are kept, not only the two diagonals. So ``A Q_j = Q H_j`` holds to
rounding whatever the operator is, restarted or not, and the residual of a Ritz pair follows from H alone.

Rows that are not multiplied yet can be made to wait (``restart.set_apart``); the process then ignores them.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import loops, programs, trees
from hessabs.curvature import basis as bases
from hessabs.typing import MatVec

# What is left of a product is rounding, and no direction, below so many eps of its norm. The products carry
# some tens of eps themselves, and how many depends on the processor.
_ROUNDING = 50


class KrylovState(NamedTuple):
    """A basis and the operator projected on it; what an interrupted run needs to go on.

    The arrays are NumPy's on the host, where rows are written in place, and JAX's on devices.
    """

    basis: Any  # (rows, size), or a pytree with a leading axis of rows: the first `built` are orthonormal
    projected: Any  # shape (rows, rows): column j holds the coefficients of A q_j; float64 on the host
    multiplied: Any  # int: the next row to multiply
    built: Any  # int: rows that were built, at least `multiplied`
    finite: Any  # bool: False when a product was not finite; the process has then ended
    num_matvecs: Any  # int: products computed, over all restarts
    waiting: Any  # two ints: the first row that waits and the one after the last; (0, 0) unless set apart


def start(like: Any, num_rows: int, vectors: Iterable[Any] = ()) -> KrylovState:
    """Begin with the span of some vectors."""
    basis = bases.zeros(like, num_rows)
    _, _, dtype = bases.measure(basis)
    if isinstance(basis, np.ndarray):
        state = KrylovState(basis, np.zeros((num_rows, num_rows)), 0, 0, True, 0, (0, 0))
    else:
        state = KrylovState(basis, jnp.zeros((num_rows, num_rows), dtype), 0, 0, True, 0, (0, 0))
    for vector in vectors:
        state, _ = append(state, _scaled(vector))
    return state


def append(state: KrylovState, vector: Any, first: int = 0) -> tuple[KrylovState, Any]:
    """Orthogonalise a vector against the basis and make what remains the next row."""
    if isinstance(state.basis, np.ndarray):
        return _append_host(state, vector, first)
    if trees.is_traced(state, vector):
        return _append_device(state, vector)
    # Waiting keeps the number of programs in flight small, whatever loop this is called in.
    return jax.block_until_ready(_jitted_append(state, vector))


def _append_host(state: KrylovState, vector: np.ndarray, first: int) -> tuple[KrylovState, np.ndarray]:
    num_rows, size = state.basis.shape
    rows, (rest, after) = state.basis[: state.built], state.waiting
    coefficients = np.zeros(num_rows, state.basis.dtype)
    before = norm = math.sqrt(vector @ vector)
    # The first pass removes what is large, the next one what rounding left of it: reading only the rows that
    # were built, and in the first pass only those that the vector can be large in. More passes if much was
    # removed.
    for number in range(4):
        begin, last = (0 if number else first), norm
        part = rows[begin:] @ vector
        part[max(rest - begin, 0) : max(after - begin, 0)] = 0
        vector = vector - part @ rows[begin:]
        coefficients[begin : state.built] += part
        norm = math.sqrt(vector @ vector)
        if number and norm >= last / 2:
            break
    room = state.built < num_rows and state.built - (after - rest) < size
    if not (room and norm > _ROUNDING * np.finfo(state.basis.dtype).eps * before):
        return state, coefficients
    np.multiply(vector, 1 / norm, out=state.basis[state.built])
    coefficients[state.built] = norm
    return state._replace(built=state.built + 1), coefficients


def _append_device(state: KrylovState, vector: Any) -> tuple[KrylovState, jax.Array]:
    num_rows, size, dtype = bases.measure(state.basis)
    before = jnp.sqrt(bases.dot(vector, vector))
    # Once would leave rounding errors of the size of what was removed; twice is enough (Parlett, Kahan).
    vector, coefficients = bases.project_out(state.basis, state.built, state.waiting, vector)
    vector, rest = bases.project_out(state.basis, state.built, state.waiting, vector)
    norm = jnp.sqrt(bases.dot(vector, vector))
    room = (state.built < num_rows) & (state.built - (state.waiting[1] - state.waiting[0]) < size)
    keep = (norm > _ROUNDING * jnp.finfo(dtype).eps * before) & room
    coefficients = (coefficients + rest).at[state.built].add(jnp.where(keep, norm, 0))
    scale = trees.safe_inverse(norm)
    basis = jax.tree.map(
        lambda rows, v: rows.at[state.built].set(jnp.where(keep, v * scale, rows[state.built])),
        state.basis,
        vector,
    )
    return state._replace(basis=basis, built=state.built + keep.astype(int)), coefficients


def expand(
    matvec: MatVec, form: trees.Static, state: KrylovState, num_multiplied: int, loop: loops.Loop
) -> KrylovState:
    """Multiply rows until ``num_multiplied`` are, or no row is left, or a product is not finite."""
    if loop == "device":
        run = _jitted_expand if loops.is_compiled(matvec) and not trees.is_traced(matvec, state) else _expand
        return run(matvec, form, state, num_multiplied)
    # Reading the numbers of a state on devices waits for its product: one program is in flight, not all.
    while int(state.multiplied) < min(num_multiplied, int(state.built)) and bool(state.finite):
        state = store(state, multiply(matvec, form, bases.row(state.basis, int(state.multiplied))))
    return state


def store(state: KrylovState, product: Any) -> KrylovState:
    """Take the product of the next row into a state; its arrays are used up."""
    if not isinstance(state.basis, np.ndarray):
        return _jitted_store(state, product)
    num_matvecs, column = state.num_matvecs + 1, state.multiplied
    if not np.isfinite(product).all():
        return state._replace(finite=False, num_matvecs=num_matvecs)
    # The operator is symmetric: row `column` of what was projected so far says where its column is not
    # rounding. It does not say what rows that wait have to do with it.
    row = np.abs(state.projected[column, :column])
    coupled = np.flatnonzero(row > 100 * np.finfo(state.basis.dtype).eps * np.max(row, initial=0))
    first = 0 if state.waiting[1] else int(coupled[0]) if coupled.size else column
    state, state.projected[:, column] = append(state, product, first)
    return state._replace(multiplied=column + 1, num_matvecs=num_matvecs)


def multiply(matvec: MatVec, form: trees.Static, row: Any) -> Any:
    """Multiply one row: an operator is compiled together with cutting and joining, another callable is not."""
    if loops.is_compiled(matvec) and not trees.is_traced(matvec, row):
        product = _jitted_multiply(matvec, form, row)
    else:
        product = _checked_row(matvec(_jitted_to_params(row, form)), form)
    return np.asarray(product) if isinstance(row, np.ndarray) else product


def _scaled(vector: Any) -> Any:
    if isinstance(vector, np.ndarray):
        return vector / np.maximum(np.max(np.abs(vector), initial=0), 1e-37)
    return (_unit if trees.is_traced(vector) else _jitted_unit)(vector)


def _unit(vector: Any) -> Any:
    return trees.normalize(vector)[0]


def _checked_row(product: Any, form: trees.Static) -> Any:
    _, shape = form.value
    treedef, leaves = shape.value
    want = jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    trees.check_like(product, want, "matvec(v0)", "v0")
    return _jitted_to_row(product, form)


def _multiply(matvec: MatVec, form: trees.Static, row: Any) -> Any:
    return _checked_row(matvec(bases.to_params(row, form)), form)


def _store(state: KrylovState, product: Any) -> KrylovState:
    column = state.multiplied
    parts = [jnp.isfinite(x).all() for x in jax.tree.leaves(product)]
    finite = jnp.all(jnp.stack(parts))
    product = jax.tree.map(lambda x, rows: jnp.where(finite, x, 0).astype(rows.dtype), product, state.basis)
    grown, coefficients = _append_device(state, product)
    projected = grown.projected.at[:, column].set(coefficients)
    return grown._replace(
        projected=projected, multiplied=column + finite, finite=finite, num_matvecs=state.num_matvecs + 1
    )


def _expand(matvec: MatVec, form: trees.Static, state: KrylovState, num_multiplied: Any) -> KrylovState:
    def step(state: KrylovState) -> KrylovState:
        return _store(state, _multiply(matvec, form, bases.row(state.basis, state.multiplied)))

    def proceed(state: KrylovState) -> Any:
        return (state.multiplied < jnp.minimum(num_multiplied, state.built)) & state.finite

    return jax.lax.while_loop(proceed, step, jax.tree.map(jnp.asarray, state))


_jitted_append = jax.jit(_append_device, donate_argnums=0)
_jitted_store = jax.jit(_store, donate_argnums=0)
_jitted_expand = programs.jit(_expand, donate_argnums=2)
_jitted_multiply = programs.jit(_multiply)
_jitted_to_params = jax.jit(bases.to_params)
_jitted_unit = jax.jit(_unit)
_jitted_to_row = jax.jit(bases.to_row)
