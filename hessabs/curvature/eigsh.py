"""Several eigenpairs at once: Lanczos with thick restart.

The Krylov process runs until its basis is full or the wanted pairs are there; then the best Ritz vectors and
the directions not yet multiplied are kept and the process goes on. The small projected problem is solved on the
host in float64. Memory is fixed by ``num_vectors``: restarts save memory and cost products.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees
from hessabs.curvature import krylov, loops
from hessabs.curvature.blas import one_blas_thread
from hessabs.curvature.lanczos import check_dimension
from hessabs.curvature.precision import full_precision
from hessabs.typing import MatVec, Params

Which = Literal["LA", "SA", "LM", "BE"]
_FIRST_LOOK = 4  # products before the first look at the projected problem
_LOOKS = 16  # the next look comes after a 16th more products: a look costs less than they do
_BASIS_BYTES = 2**30  # of a basis, unless the smallest good one is larger
_LOOK_AGAIN = 20  # products after a new direction before pairs that had converged are believed


class EigshResult(NamedTuple):
    """Eigenpairs with what is known of their quality; k of them, best first."""

    eigenvalues: np.ndarray  # shape (k,), float64: in the order of `which`, see `eigsh`
    eigenvectors: Params  # like v0 with a leading axis of k, norm 1: the best v0 for the next call
    residuals: np.ndarray  # shape (k,), float64: ||A v - eigenvalue v|| / |eigenvalue| (absolute if that is 0)
    converged: np.ndarray  # shape (k,), bool
    num_matvecs: int  # products computed, those before `state` was saved included
    state: krylov.KrylovState  # pass it as `state` to go on


@one_blas_thread
def eigsh(
    matvec: MatVec,
    v0: Params,
    k: int = 1,
    *,
    which: Which = "LA",
    rtol: float = 1e-3,
    max_matvecs: int | None = None,
    block_size: int = 1,
    num_vectors: int | None = None,
    state: krylov.KrylovState | None = None,
    loop: loops.Loop | None = None,
) -> EigshResult:
    """Find k eigenpairs of a symmetric operator by Lanczos with thick restart.

    A pair has converged when its residual is at most ``rtol * |eigenvalue|``, or lost in the rounding of the
    arithmetic (10 eps of the largest magnitude seen). One start vector sees one vector of each eigenspace;
    repeated eigenvalues need a ``block_size`` of their multiplicity, or come in later through rounding and when
    the space is exhausted, at which a fixed pseudo-random direction is added.

    Args:
      matvec: The operator, from a pytree to a pytree of the same structure; see ``power_iteration``.
      v0: Start vector, a pytree of floating-point arrays. To start warm from the k ``eigenvectors`` of an
        earlier call, pass them with ``block_size=k``.
      k: Number of pairs.
      which: ``"LA"`` largest (descending), ``"SA"`` smallest (ascending), ``"LM"`` largest in magnitude
        (descending by magnitude), ``"BE"`` half from each end (descending; one more from the top if k is odd).
      rtol: Largest relative residual of a converged pair.
      max_matvecs: Largest number of products; None for ``10 * max(2 k + 20, 40)``.
      block_size: Number of start vectors; more than one and every leaf of ``v0`` has a leading axis of that
        size.
      num_vectors: Rows of the basis besides the block, at most the dimension: beyond it the process restarts.
        None for ``10 k + 100`` as far as they fit 1 GiB, and at least ``max(2 k + 20, 40)``. On the host memory
        is taken as rows are built.
      state: ``result.state`` of a call that ended early, with the same operator; ``v0`` then only gives the
        structure. The run goes on as if it had not been interrupted.
      loop: ``"host"``, ``"device"`` or None; see ``hessabs.curvature.loops``. The projected problem is solved
        on the host in any case.

    Returns:
      An ``EigshResult``. A product that is not finite ends the run at once; it shows as NaN in all eigenvalues
      and residuals.

    Raises:
      ValueError: If a number is out of range, ``state`` has another shape, or the call is traced.

    Example:
      >>> result = eigsh(lambda v: jnp.arange(100.0) * v, jnp.ones(100), 3, rtol=1e-5)
      >>> result.eigenvalues.round(3), bool(result.converged.all())
      (array([99., 98., 97.]), True)

    References:
      Wu and Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems"; Ruhe (1979)
      for the band form.
    """
    if trees.is_traced(matvec, v0):
        raise ValueError(
            "eigsh solves its projected problem on the host and cannot be traced (jit, vmap, grad, pmap); use "
            "lanczos or power_iteration there."
        )
    loop = loops.choose(loop, matvec, v0)
    vectors, shape = _start_vectors(v0, block_size)
    size = vectors.shape[1]
    check_dimension("k", k, size)
    check_dimension("block_size", block_size, size)
    num_vectors = _num_vectors(num_vectors, k, block_size, vectors)
    max_matvecs = 10 * max(2 * k + 20, 40) if max_matvecs is None else max_matvecs
    if which not in ("LA", "SA", "LM", "BE"):
        raise ValueError(f'`which` must be "LA", "SA", "LM" or "BE", got {which!r}.')
    if not rtol >= 0:
        raise ValueError(f"`rtol` must be at least 0, got {rtol}.")
    if max_matvecs < k:
        raise ValueError(f"`max_matvecs` must be at least k={k}, got {max_matvecs}.")
    xp = np if loop == "host" else jnp
    if loop == "device":
        matvec = trees.as_partial(matvec)
    rows = num_vectors + block_size
    resumed = state is not None
    if state is None:
        state = krylov.start(xp.asarray(vectors), rows, xp)._replace(known=np.full(k, np.nan))
    else:
        state = _restore(state, (rows, size), k, xp)
    while True:
        goal = min(
            _next_look(int(state.multiplied) + (not resumed), k),
            int(state.multiplied) + max_matvecs - int(state.num_matvecs),
            num_vectors,
        )
        state, resumed = krylov.expand(matvec, shape, state, goal, loop), False
        ritz = _solve_projected(state, which, k)
        floor = 10 * float(np.finfo(state.basis.dtype).eps) * ritz.scale
        converged = ritz.residuals <= np.maximum(rtol * np.abs(ritz.values), floor)
        # Directions that the start vectors do not contain may hide eigenvalues. When the space is exhausted, or
        # for the first time only rounding leads on, one more look must find none.
        exhausted = int(state.built) == int(state.multiplied)
        closed = not exhausted and int(state.settled_at) == 0 and ritz.coupling <= 10 * floor
        if exhausted:
            seen = len(ritz.values) == k and bool(np.all(np.abs(state.known - ritz.values) <= floor))
        else:
            seen = not closed and int(state.num_matvecs) >= int(state.settled_at)
        found = len(ritz.values) == k and bool(converged.all()) and seen
        spent = int(state.num_matvecs) >= max_matvecs or int(state.multiplied) == size
        if found or spent or not bool(state.finite):
            return _result(state, shape, ritz, converged, k, xp)
        if int(state.multiplied) >= num_vectors:
            state = _restart(state, which, k, num_vectors, xp)
        if closed:
            state = state._replace(settled_at=int(state.num_matvecs) + _LOOK_AGAIN)
        if exhausted:
            known = np.append(ritz.values, np.full(k - len(ritz.values), np.nan))
            state = _add_direction(state._replace(known=known), xp)
            if int(state.built) == int(state.multiplied):  # nothing is left of the space but rounding
                return _result(state, shape, ritz, converged, k, xp)


class _Ritz(NamedTuple):
    values: np.ndarray  # shape (number found,), float64: the wanted ones, in order
    coefficients: np.ndarray  # shape (multiplied, number found): of the Ritz vectors in the basis
    residuals: np.ndarray  # shape (number found,): absolute
    scale: float  # the largest magnitude of a Ritz value
    coupling: float  # how much of the products of multiplied rows lies in rows that are not


def _solve_projected(state: krylov.KrylovState, which: Which, number: int) -> _Ritz:
    count = int(state.multiplied)
    columns = np.asarray(state.projected, np.float64)[:, :count]
    if count == 0 or not np.isfinite(columns).all():
        return _Ritz(np.array([]), np.zeros((count, 0)), np.array([]), 0.0, 0.0)
    square = columns[:count]
    values, vectors = np.linalg.eigh((square + square.T) / 2)
    wanted = _select(values, which, number)
    coefficients = vectors[:, wanted]
    error = columns @ coefficients
    error[:count] -= coefficients * values[wanted]
    residuals, coupling = np.linalg.norm(error, axis=0), float(np.linalg.norm(columns[count:]))
    return _Ritz(values[wanted], coefficients, residuals, float(np.abs(values).max()), coupling)


def _select(values: np.ndarray, which: Which, number: int) -> np.ndarray:
    order = np.argsort(-np.abs(values), kind="stable") if which == "LM" else np.arange(len(values))[::-1]
    number = min(number, len(values))
    if which == "SA":
        return order[::-1][:number]
    if which == "BE":
        return np.concatenate([order[: number - number // 2], order[len(order) - number // 2 :]])
    return order[:number]


def _next_look(multiplied: int, k: int) -> int:
    # Looks come at the same numbers of rows, wherever a run was interrupted.
    look = max(k + 1, _FIRST_LOOK)
    while look < multiplied:
        look += 1 + look // _LOOKS
    return look


@full_precision
def _restart(state: krylov.KrylovState, which: Which, k: int, num_vectors: int, xp: Any) -> krylov.KrylovState:
    count, built = int(state.multiplied), int(state.built)
    ritz = _solve_projected(state, which, k + (num_vectors - k) // 2)
    kept, queue = len(ritz.values), built - count
    columns = np.asarray(state.projected, np.float64)
    projected = np.zeros_like(columns)
    projected[:kept, :kept] = ritz.coefficients.T @ columns[:count, :count] @ ritz.coefficients
    projected[kept : kept + queue, :kept] = columns[count:built, :count] @ ritz.coefficients
    mix = xp.asarray(ritz.coefficients.T, state.basis.dtype)
    rows = xp.concatenate([mix @ state.basis[:count], state.basis[count:built]])
    if xp is np:
        basis = state.basis
        basis[: kept + queue] = rows
    else:
        basis = jnp.zeros_like(state.basis).at[: kept + queue].set(rows)
    projected = xp.asarray(projected, state.projected.dtype)
    return state._replace(basis=basis, projected=projected, multiplied=kept, built=kept + queue)


def _add_direction(state: krylov.KrylovState, xp: Any) -> krylov.KrylovState:
    rng = np.random.default_rng((_LOOK_AGAIN, int(state.num_matvecs), int(state.built)))
    direction = xp.asarray(rng.standard_normal(state.basis.shape[1]), state.basis.dtype)
    grown, _ = krylov.append(state, direction, xp)
    return grown._replace(settled_at=int(state.num_matvecs) + _LOOK_AGAIN)


def _start_vectors(v0: Params, block_size: int) -> tuple[jax.Array, trees.Static]:
    trees.check_floating(v0, "v0")
    if block_size == 1:
        flat, shape = trees.ravel(v0)
        return flat[None], shape
    lead = {jnp.shape(x)[:1] for x in jax.tree.leaves(v0)}
    if lead != {(block_size,)}:
        raise ValueError(
            f"With `block_size`={block_size}, every leaf of `v0` needs a leading axis of that size, got "
            f"shapes {[jnp.shape(x) for x in jax.tree.leaves(v0)]}."
        )
    rows = [trees.ravel(jax.tree.map(lambda x, i=i: x[i], v0)) for i in range(block_size)]
    return jnp.stack([flat for flat, _ in rows]), rows[0][1]


def _num_vectors(num_vectors: int | None, k: int, block_size: int, vectors: jax.Array) -> int:
    size = vectors.shape[1]
    if num_vectors is None:
        fitting = min(10 * k + 100, _BASIS_BYTES // vectors[0].nbytes)
        return min(max(2 * k + 20, 40, k + 2 * block_size, fitting), size)
    least = min(k + max(block_size, 2), size)
    if not least <= num_vectors <= size:
        raise ValueError(f"`num_vectors` must lie in [{least}, {size}] for k={k}, got {num_vectors}.")
    return num_vectors


def _restore(state: krylov.KrylovState, shape: tuple[int, int], k: int, xp: Any) -> krylov.KrylovState:
    if tuple(state.basis.shape) != shape or np.shape(state.known) != (k,):
        raise ValueError(
            f"`state` has a basis of shape {tuple(state.basis.shape)} for k={np.size(state.known)}, but this "
            f"call needs {shape} (num_vectors + block_size, size of v0) for k={k}; use the arguments of the "
            "call that saved it."
        )
    numbers = {name: int(getattr(state, name)) for name in ("multiplied", "built", "num_matvecs", "settled_at")}
    arrays = {name: xp.array(getattr(state, name)) for name in ("basis", "projected")}
    return state._replace(**arrays, **numbers, finite=bool(state.finite), known=np.array(state.known))


@full_precision
def _result(
    state: krylov.KrylovState, shape: trees.Static, ritz: _Ritz, converged: np.ndarray, k: int, xp: Any
) -> EigshResult:
    found = len(ritz.values)
    values, residuals = np.full(k, np.nan), np.full(k, np.nan)
    vectors = np.zeros((k, state.basis.shape[1]), state.basis.dtype)
    if bool(state.finite):
        values[:found] = ritz.values
        size = np.abs(ritz.values)
        residuals[:found] = ritz.residuals / np.where(size > 0, size, 1)
        mix = xp.asarray(ritz.coefficients.T, state.basis.dtype)
        vectors[:found] = mix @ state.basis[: ritz.coefficients.shape[0]]
    flags = np.zeros(k, bool)
    flags[:found] = converged & bool(state.finite)
    eigenvectors = trees.unravel(jnp.asarray(vectors), shape)
    return EigshResult(values, eigenvectors, residuals, flags, int(state.num_matvecs), state)
