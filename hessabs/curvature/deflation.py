"""Several eigenpairs by power iteration, each with those before it projected out.

Simple, and slow where eigenvalues lie close together: ``eigsh`` needs far fewer products. It is here because
its pairs come one by one in the order of magnitude, as in PyHessian, and because it runs under a trace.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import loops, trees
from hessabs.curvature.power import PowerIterationResult, power_iteration
from hessabs.curvature.precision import full_precision
from hessabs.typing import MatVec, Params


def deflated_power_iteration(
    matvec: MatVec,
    v0: Params,
    *,
    max_iters: int = 100,
    rtol: float = 1e-3,
    loop: loops.Loop | None = None,
) -> PowerIterationResult:
    """Find the eigenvalues of largest magnitude, one after another.

    Args:
      matvec, loop: As in ``power_iteration``.
      v0: Start vectors: a pytree whose leaves have a leading axis of k, the number of pairs. The eigenvectors
        of an earlier call are the best ones.
      max_iters: Largest number of products for each pair.
      rtol: As in ``power_iteration``, for each pair, of the operator with the earlier ones projected out.

    Returns:
      A ``PowerIterationResult`` with a leading axis of k on every field.

    Raises:
      ValueError: As ``power_iteration``.

    Example:
      >>> matvec = lambda v: jnp.array([1.0, -3.0, 2.0]) * v
      >>> deflated_power_iteration(matvec, jnp.ones((2, 3)), max_iters=50).eigenvalue.round(2)
      Array([-3.,  2.], dtype=float32)

    References:
      Yao et al. (2020), arXiv:1912.07145 (PyHessian).
    """
    found = jax.tree.map(jnp.zeros_like, v0)
    results = []
    for i in range(jax.tree.leaves(v0)[0].shape[0]):
        bind = Partial if loops.is_compiled(matvec) else functools.partial
        deflated = bind(_deflated, matvec, found)
        start = _project_out(found, jax.tree.map(lambda x, i=i: x[i], v0))
        results.append(power_iteration(deflated, start, max_iters=max_iters, rtol=rtol, loop=loop))
        found = jax.tree.map(lambda f, v, i=i: f.at[i].set(v), found, results[-1].eigenvector)
    return jax.tree.map(lambda *x: jnp.stack(x), *results)


def _deflated(matvec: MatVec, found: Params, vector: Params) -> Params:
    return _project_out(found, matvec(_project_out(found, vector)))


@jax.jit
@full_precision
def _project_out(found: Params, vector: Params) -> Params:
    # Rows of `found` are orthonormal or zero.
    parts: Any = jax.vmap(lambda row: trees.vdot(row, vector))(found)
    return jax.tree.map(
        lambda v, f: (v - jnp.tensordot(parts.astype(f.dtype), f, axes=1)).astype(v.dtype), vector, found
    )
