"""The Krylov process behind ``lanczos``, ``eigsh`` and ``spectral_density``: one basis, one projected matrix.

The rows of a basis of fixed size are orthonormal vectors. Row j is multiplied by the operator, the product is
orthogonalised against all rows built so far, and what remains becomes the next row. With one start vector this
is the Lanczos process with full re-orthogonalisation; with b start vectors it is its band form (Ruhe), in which
a row is multiplied b rows after it was built, and in which directions that vanish are simply dropped.

All coefficients of the orthogonalisation are kept, not only the two diagonals. So ``A Q_j = Q H_j`` holds to
rounding whatever the operator is, restarted or not, and the residual of a Ritz pair follows from H alone.
Rows that are not multiplied yet can be made to wait (``restart.set_apart``); the process then ignores them.
"""

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
    finite: Any  # bool: False when a product, or its square, was not finite; the process has then ended
    num_matvecs: Any  # int: products computed, over all restarts
    waiting: Any  # two ints: the first row that waits and the one after the last; (0, 0) unless set apart

    @property
    def room(self) -> Any:
        """How many rows can be built before those that wait rejoin."""
        return len(self.projected) - self.built - (self.waiting[1] - self.waiting[0])

    @property
    def rows(self) -> np.ndarray:
        """The indices of the rows that were multiplied."""
        return np.r_[0 : self.waiting[0], self.waiting[1] : self.multiplied]


def standing(state: KrylovState) -> KrylovState:
    """Read the numbers of a state, outside of a trace; the arrays stay where they are."""
    first, after = (int(i) for i in state.waiting)
    counts = int(state.multiplied), int(state.built), bool(state.finite), int(state.num_matvecs)
    return KrylovState(state.basis, state.projected, *counts, (first, after))


def start(like: Any, num_rows: int, vectors: Iterable[Any] = ()) -> KrylovState:
    """Begin with the span of some rows, of which zero or dependent ones are dropped; none is multiplied."""
    basis = bases.zeros(like, num_rows)
    host = isinstance(basis, np.ndarray)
    square = (num_rows, num_rows)
    projected = np.zeros(square) if host else jnp.zeros(square, bases.measure(basis)[2])
    state = KrylovState(basis, projected, 0, 0, True, 0, (0, 0))
    for vector in vectors:
        state, _ = append(state, _scaled(vector))
    return state


def append(state: KrylovState, vector: Any, first: int = 0) -> tuple[KrylovState, Any]:
    """Orthogonalise a vector against the basis and make what remains the next row, unless it is rounding.

    The arrays of the state are used up; its basis must have room. Returns the coefficients of the vector, too.
    ``first`` is the first row that the vector is known to have more than rounding of; NumPy makes use of it.
    """
    if isinstance(state.basis, np.ndarray) or trees.is_traced(state, vector):
        return _append(state, vector, first)
    # Waiting keeps the number of programs in flight small, whatever loop this is called in.
    return jax.block_until_ready(_jitted_append(state, vector))


def _append(state: KrylovState, vector: Any, first: int = 0) -> tuple[KrylovState, Any]:
    num_rows, size, dtype = bases.measure(state.basis)
    host = isinstance(state.basis, np.ndarray)
    xp: Any = np if host else jnp
    before = norm = xp.sqrt(bases.dot(vector, vector))
    coefficients: Any = 0
    # The first pass removes what is large, the next one what rounding left of it; twice is enough (Parlett,
    # Kahan) unless much was removed, which the host sees.
    for number in range(4 if host else 2):
        last = norm
        vector, part = bases.project_out(
            state.basis, state.built, state.waiting, vector, 0 if number else first
        )
        coefficients = coefficients + part
        norm = xp.sqrt(bases.dot(vector, vector))
        if host and number and norm >= last / 2:
            break
    orthogonal = state.built - (state.waiting[1] - state.waiting[0])
    keep = (state.built < num_rows) & (orthogonal < size) & (norm > _ROUNDING * np.finfo(dtype).eps * before)
    coefficients = xp.where((xp.arange(num_rows) == state.built) & keep, norm, coefficients)
    basis = bases.set_row(state.basis, state.built, vector, norm, keep)
    built = state.built + (int(keep) if host else keep.astype(int))
    return state._replace(basis=basis, built=built), coefficients


def expand(
    matvec: MatVec, form: trees.Static, state: KrylovState, num_multiplied: int, loop: loops.Loop
) -> KrylovState:
    """Multiply rows until ``num_multiplied`` are, or no row is left, or a product is not finite.

    The arrays of the state are used up; ``num_multiplied`` lies below the number of rows.
    """
    if loop == "device":
        run = _jitted_expand if loops.is_compiled(matvec) and not trees.is_traced(matvec, state) else _expand
        return run(matvec, form, state, num_multiplied)
    # Reading the numbers of a state on devices waits for its product: one program is in flight, not all.
    while int(state.multiplied) < min(num_multiplied, int(state.built)) and bool(state.finite):
        state = store(state, multiply(matvec, form, bases.row(state.basis, int(state.multiplied))))
    return state


def store(state: KrylovState, product: Any) -> KrylovState:
    """Take the product of the next row into a state, whose arrays are used up; or that it was not finite."""
    if not isinstance(state.basis, np.ndarray):
        return _jitted_store(state, product)
    num_matvecs, column = state.num_matvecs + 1, state.multiplied
    if not _is_measurable(product):
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
    run = _jitted_multiply if loops.is_compiled(matvec) and not trees.is_traced(matvec, row) else _multiply
    product = run(matvec, form, row)
    if not isinstance(row, np.ndarray):
        return product
    if trees.is_traced(product):
        raise ValueError(
            "`matvec` closes over traced values (jit, vmap, grad), as its product shows; give an operator that "
            'holds them (`hessabs.hessian`, jax.tree_util.Partial), or `loop="device"` where there is one.'
        )
    return np.asarray(product)


def _scaled(vector: Any) -> Any:
    if isinstance(vector, np.ndarray):
        return vector / np.maximum(np.max(np.abs(vector), initial=0), 1e-37)
    return _jitted_unit(vector)


def _multiply(matvec: MatVec, form: trees.Static, row: Any) -> Any:
    vector = bases.to_params(row, form)
    product = matvec(vector)
    _, shape = form.value
    treedef, leaves = shape.value
    want = jax.tree.unflatten(treedef, [jax.ShapeDtypeStruct(*leaf) for leaf in leaves])
    trees.check_like(product, want, "matvec(v0)", "v0")
    product = bases.to_row(product, form)
    if trees.coarseness(vector):  # what was multiplied is the row rounded, whose part along it is not 1
        square, along = jnp.asarray(bases.dot(row, row)), bases.dot(row, bases.to_row(vector, form))
        part = jnp.where(square > 0, along / square, 1)  # a row of zeros is no direction
        product = jax.tree.map(lambda x: x / part, product)
    return product


def _is_measurable(product: Any) -> Any:
    """Tell whether a product and the square of its norm are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = bases.dot(product, product)
    return np.isfinite(square) if isinstance(product, np.ndarray) else jnp.isfinite(square)


def _store(state: KrylovState, product: Any) -> KrylovState:
    column = state.multiplied
    finite = _is_measurable(product)
    product = jax.tree.map(lambda x, rows: jnp.where(finite, x, 0).astype(rows.dtype), product, state.basis)
    grown, coefficients = _append(state, product)
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


_jitted_append = jax.jit(_append, donate_argnums=0)
_jitted_store = jax.jit(_store, donate_argnums=0)
_jitted_expand = programs.jit(_expand, donate_argnums=2)
_jitted_multiply = programs.jit(_multiply)
_jitted_unit = jax.jit(lambda vector: trees.normalize(vector)[0])
