"""The state of an earlier call of ``eigsh``: taken up where it fits, and only by the operator it is of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees
from hessabs.curvature import basis as bases
from hessabs.curvature import krylov
from hessabs.typing import MatVec


def take_up(state: krylov.KrylovState, like: Any, num_rows: int) -> krylov.KrylovState:
    """Copy a saved state, or its arrays as NumPy's, to where the rows of this call lie."""
    got, want = state.basis, bases.zeros(like, num_rows)
    # More rows than asked for are those that a check has added.
    if _shapes(bases.first_rows(got, num_rows)) != _shapes(want):
        raise ValueError(
            f"`state` has a basis of shape {_shapes(got)}, but this call needs {_shapes(want)} (num_vectors + "
            "block_size, size of v0); use the arguments of the call that saved it."
        )
    now = krylov.standing(state)
    projected: Any = np.array(state.projected, np.float64)
    if isinstance(want, np.ndarray):
        basis = np.array(got)
    else:
        basis = jax.tree.map(lambda x, y: jnp.copy(jax.device_put(x, y.sharding)), got, want)
        projected = jnp.asarray(projected, bases.measure(basis)[2])
    waiting = (now.first, now.after)
    return krylov.KrylovState(basis, projected, now.multiplied, now.built, now.finite, now.num_matvecs, waiting)


def check_operator(matvec: MatVec, form: trees.Static, state: krylov.KrylovState) -> None:
    """Multiply one row again, the one with the largest product, and compare."""
    rows = krylov.standing(state).rows
    if not rows.size or not state.finite:
        return
    columns = np.asarray(state.projected, np.float64)[: state.built]
    sizes = np.linalg.norm(columns[:, rows], axis=0)
    column = int(rows[sizes.argmax()])
    known = bases.row(bases.combine(state.basis, columns[:, column][None]), 0)
    product = krylov.multiply(matvec, form, bases.row(state.basis, column))
    error = jax.tree.map(lambda a, b: a - b, product, known)
    difference = float(jnp.sqrt(bases.dot(error, error)))
    _, shape = form.value
    eps = max(float(jnp.finfo(dtype).eps) for _, dtype in shape.value[1])
    # Half of the digits: a product that is computed again has the others, unless it rounds otherwise.
    if not difference <= 3 * eps**0.5 * sizes.max():
        raise ValueError(
            f"`state` is of another operator: a product differs from that of `matvec` by "
            f"{difference / max(sizes.max(), 1e-37):.2g} of its norm. Leave `state` out; to start warm, pass "
            "the `eigenvectors` of that call as `v0` with `block_size=k`."
        )


def _shapes(basis: Any) -> Any:
    return jax.tree.map(lambda x: tuple(x.shape), basis)
