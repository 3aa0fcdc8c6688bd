"""Restarts of a Krylov process: from combinations of its rows, apart from those not multiplied yet, or saved.

A process that is set apart takes no notice of the rows that wait: its vectors lie in the complement of the rows
that were multiplied. ``rejoin`` brings what waited back, with what the products of the others had in it. A
saved state is taken up where it fits, and only by the operator it is of.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees
from hessabs.curvature import basis as bases
from hessabs.curvature import krylov
from hessabs.curvature.krylov import KrylovState
from hessabs.typing import MatVec


def set_apart(state: KrylovState, vector: Any) -> KrylovState:
    """Let the rows that are not multiplied wait, and go on from a vector in the complement of the others."""
    waiting = (int(state.multiplied), int(state.built))
    state, _ = krylov.append(state._replace(waiting=waiting, multiplied=waiting[1]), vector)
    return state


def rejoin(state: KrylovState) -> KrylovState:
    """Bring what waits to the end of the basis, orthogonal to all that was built since.

    The old places of those rows are void then: drop them with ``recombine``.
    """
    first = int(state.waiting[0])
    projected = np.array(state.projected, np.float64)
    for i in range(first, int(state.waiting[1])):
        # Products of the rows before lie in this direction, hence in those that it is made of now.
        state, coefficients = krylov.append(state, bases.row(state.basis, i))
        projected[:, :first] += np.outer(np.asarray(coefficients, np.float64), projected[i, :first])
        projected[i, :first] = 0
    return state._replace(projected=_like(projected, state))


def recombine(state: KrylovState, coefficients: np.ndarray, spare: int) -> KrylovState:
    """Restart: keep combinations of the rows that were multiplied, and the rows that are not.

    The basis stays as large as it is, or grows until ``spare`` rows are free. Nothing waits in the new state.
    """
    now, kept = krylov.standing(state), coefficients.shape[1]
    count, built, end = now.multiplied, now.built, kept + now.built - now.multiplied
    num_rows = max(len(now.projected), end + spare)
    columns = np.array(state.projected, np.float64)
    projected = np.zeros((num_rows, num_rows))
    projected[:kept, :kept] = coefficients.T @ columns[:count, :count] @ coefficients
    projected[kept:end, :kept] = columns[count:built, :count] @ coefficients
    mix = np.zeros((end, built))
    mix[:kept, :count], mix[kept:, count:] = coefficients.T, np.eye(built - count)
    if isinstance(state.basis, np.ndarray) and num_rows == len(state.basis):
        basis = state.basis
        basis[:end] = bases.combine(basis, mix)
    else:
        basis = bases.combine(state.basis, mix, num_rows)
    state = state._replace(basis=basis, multiplied=kept, built=end, waiting=(0, 0))
    return state._replace(projected=_like(projected, state))


def take_up(state: KrylovState, like: Any, num_rows: int) -> KrylovState:
    """Copy a saved state, or its arrays as NumPy's, to where the rows of this call lie."""
    got, want = state.basis, bases.zeros(like, num_rows)
    # More rows than asked for are those that a check has added.
    if _shapes(bases.first_rows(got, num_rows)) != _shapes(want):
        raise ValueError(
            f"`state` has a basis of shape {_shapes(got)}, but this call needs {_shapes(want)} (num_vectors + "
            "block_size, size of v0); use the arguments of the call that saved it."
        )
    projected: Any = np.array(state.projected, np.float64)
    if isinstance(want, np.ndarray):
        basis = np.array(got)
    else:
        basis = jax.tree.map(lambda x, y: jnp.copy(jax.device_put(x, y.sharding)), got, want)
        projected = jnp.asarray(projected, bases.measure(basis)[2])
    return krylov.standing(state)._replace(basis=basis, projected=projected)


def check_operator(matvec: MatVec, form: trees.Static, state: KrylovState) -> None:
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


def _like(projected: np.ndarray, state: KrylovState) -> Any:
    if isinstance(state.basis, np.ndarray):
        return projected
    return jnp.asarray(projected, state.projected.dtype)


def _shapes(basis: Any) -> Any:
    return jax.tree.map(lambda x: tuple(x.shape), basis)
