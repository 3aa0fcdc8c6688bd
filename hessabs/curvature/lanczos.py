"""The Lanczos process: a symmetric operator as a tridiagonal matrix on a Krylov space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import loops, trees
from hessabs.checks import count
from hessabs.cpu.blas import one_blas_thread
from hessabs.curvature import basis as bases
from hessabs.curvature import krylov
from hessabs.typing import MatVec, Params


class LanczosResult(NamedTuple):
    """``A Q = Q T + r e'``: T has the two diagonals, e is the last unit vector.

    Where the space was exhausted early, the rest of every field is zero.
    """

    basis: Params  # like v0 with a leading axis of num_iters: orthonormal vectors
    diagonal: jax.Array  # shape (num_iters,), at least float32
    off_diagonal: jax.Array  # shape (num_iters - 1,), at least float32, not negative
    remainder: Params  # like v0, at least float32: r
    num_iters: jax.Array  # shape (), int32: products computed
    finite: jax.Array  # shape (), bool: False when a product was not finite, at which the process ended


@one_blas_thread
def lanczos(matvec: MatVec, v0: Params, num_iters: int, *, loop: loops.Loop | None = None) -> LanczosResult:
    """Tridiagonalise a symmetric operator on the Krylov space of a vector, with full re-orthogonalisation.

    Memory is that of ``num_iters + 1`` vectors in at least float32; what is compiled does not depend on
    ``num_iters`` on the host. The process ends early when the space is exhausted (a zero or low-rank operator,
    the zero vector), with finite results.

    Args:
      matvec, loop: As in ``power_iteration``.
      v0: Start vector, a pytree of floating-point arrays of any norm.
      num_iters: Number of products, from 1 to the dimension.

    Raises:
      ValueError: If ``num_iters`` lies outside [1, dimension], or the product has another structure than
        ``v0``.

    Example:
      >>> result = lanczos(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, jnp.ones(3), 3)
      >>> lower = np.diag(result.off_diagonal, -1)
      >>> np.linalg.eigvalsh(np.diag(result.diagonal) + lower + lower.T).round(3)
      array([1., 2., 4.], dtype=float32)

    References:
      Golub and Van Loan (2013), "Matrix computations", section 10.1. Differs from the textbook: full
      re-orthogonalisation, twice.
    """
    chosen = loops.choose(loop, matvec, v0)
    form = bases.layout(v0, chosen == "host")
    start = bases.to_row(v0, form)
    num_iters = checked_dimension("num_iters", num_iters, trees.size(start))
    state = krylov.start(start, num_iters + 1, [start])
    state = krylov.expand(matvec, form, state, num_iters, chosen)
    dtype = bases.measure(state.basis)[2]
    xp = np if isinstance(state.projected, np.ndarray) else jnp
    diagonal, off = xp.diagonal(state.projected), xp.diagonal(state.projected, -1)
    last = bases.row(state.basis, num_iters)
    return LanczosResult(
        bases.to_params(bases.first_rows(state.basis, num_iters), form),
        jnp.asarray(diagonal[:num_iters], dtype),
        jnp.asarray(off[: num_iters - 1], dtype),
        bases.to_params(jax.tree.map(lambda x: (off[num_iters - 1] * x).astype(dtype), last), form),
        jnp.asarray(state.num_matvecs, jnp.int32),
        jnp.asarray(state.finite),
    )


def checked_dimension(name: str, number: int, dimension: int) -> int:
    """Return a number of vectors, or raise unless it is whole and fits the dimension."""
    if not 1 <= number <= dimension:
        raise ValueError(f"`{name}` must lie in [1, {dimension}], the dimension of the operator, got {number}.")
    return count(**{name: number})
