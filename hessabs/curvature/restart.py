"""Restarts of a Krylov process: from combinations of its rows, or apart from those not multiplied yet.

A process that is set apart takes no notice of the rows that wait: its vectors lie in the complement of the rows
that were multiplied. ``rejoin`` brings what waited back, with what the products of the others had in it.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from hessabs.curvature import basis as bases
from hessabs.curvature import krylov


def set_apart(state: krylov.KrylovState, vector: Any) -> krylov.KrylovState:
    """Let the rows that are not multiplied wait, and go on from a vector in the complement of the others."""
    waiting = (int(state.multiplied), int(state.built))
    state, _ = krylov.append(state._replace(waiting=waiting, multiplied=waiting[1]), vector)
    return state


def rejoin(state: krylov.KrylovState) -> krylov.KrylovState:
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


def recombine(state: krylov.KrylovState, coefficients: np.ndarray, spare: int) -> krylov.KrylovState:
    """Restart: keep combinations of the rows that were multiplied, and the rows that are not.

    The basis stays as large as it is, or grows until ``spare`` rows are free. Nothing waits in the new state.
    """
    now, kept = krylov.standing(state), coefficients.shape[1]
    count, built, end = now.multiplied, now.built, kept + now.built - now.multiplied
    num_rows = max(now.num_rows, end + spare)
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


def _like(projected: np.ndarray, state: krylov.KrylovState) -> Any:
    if isinstance(state.basis, np.ndarray):
        return projected
    return jnp.asarray(projected, state.projected.dtype)
