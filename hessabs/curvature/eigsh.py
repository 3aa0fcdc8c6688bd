"""Several eigenpairs at once: Lanczos with thick restart.

The Krylov process runs until its basis is full or the wanted pairs are there; then the best Ritz vectors and
the directions not yet multiplied are kept and the process goes on. A single start vector cannot tell members of
a cluster apart, so pairs that have converged are believed only after a check: a second process, from a random
vector orthogonal to them. The small projected problems are solved on the host in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import loops, trees
from hessabs.checks import require
from hessabs.cpu.blas import one_blas_thread
from hessabs.curvature import basis as bases
from hessabs.curvature import krylov, restart, ritz
from hessabs.curvature.krylov import KrylovState
from hessabs.curvature.lanczos import checked_dimension
from hessabs.curvature.precision import full_precision
from hessabs.curvature.ritz import Ritz, Step, Wanted, Which
from hessabs.typing import MatVec, Params

Save: TypeAlias = Callable[[KrylovState], None]
_FIRST_LOOK = 4  # products before the first look at the projected problem
_LOOKS = 16  # the next look comes after a 16th more products: a look costs less than they do
_BASIS_BYTES = 2**30  # of a basis, unless the smallest good one is larger
_CHECK_ROWS = 12  # of the basis that a check has at the least


class EigshResult(NamedTuple):
    """Eigenpairs with what is known of their quality; k of them, best first."""

    eigenvalues: np.ndarray  # shape (k,), float64: in the order of `which`, see `eigsh`
    eigenvectors: Params  # like v0 with a leading axis of k, norm 1: the best v0 for the next call
    residuals: np.ndarray  # shape (k,), float64: ||A v - eigenvalue v|| / |eigenvalue| (absolute if that is 0)
    converged: np.ndarray  # shape (k,), bool: residuals are small, and a check found nothing that was missed
    num_matvecs: int  # products computed, those before `state` was saved included
    state: KrylovState | None  # with `keep_state`: pass it as `state` to go on


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
    state: KrylovState | None = None,
    keep_state: bool = False,
    save: Save | None = None,
    loop: loops.Loop | None = None,
) -> EigshResult:
    """Find k eigenpairs of a symmetric operator by Lanczos with thick restart.

    A residual is small if it is at most ``rtol * |eigenvalue|``, or lost in the rounding of the arithmetic (10
    eps of the largest magnitude seen; with params in half precision one of theirs, 0.8 % of bfloat16, and no
    residual below half of it is reported). When all are, a check begins. It ends as soon as it shows that no
    eigenvalue is left beyond the last wanted one (by more than such a residual): after about ten products where
    a gap follows that one, and in any case after half as many as there were before, four at the least. What it
    finds joins the basis, and the search goes on, to another check. So repeated eigenvalues come one with each
    check, or all at once with a ``block_size`` of their multiplicity.

    Args:
      matvec: The operator, from a pytree to a pytree of the same structure; see ``power_iteration``.
      v0: Start vector, a pytree of floating-point arrays. To start warm from the k ``eigenvectors`` of an
        earlier call, pass them with ``block_size=k``. Where its leaves are sharded over a mesh, the basis and
        the eigenvectors are sharded as they are.
      k: Number of pairs.
      which: ``"LA"`` largest (descending), ``"SA"`` smallest (ascending), ``"LM"`` largest in magnitude
        (descending by magnitude), ``"BE"`` half from each end (descending; one more from the top if k is odd).
      rtol: Largest relative residual of a converged pair.
      max_matvecs: Largest number of products; None for ``10 * max(2 k + 20, 40)``. Where they end before the
        check does, no pair has converged, however small its residual.
      block_size: Number of start vectors, the leading axis of every leaf of ``v0`` if there are several.
      num_vectors: Rows of the basis besides the block, at most the dimension: beyond it the process restarts,
        which saves memory and costs products. None for ``10 k + 100`` as far as they fit 1 GiB, and at least
        ``max(2 k + 20, 40)``. A check in a small basis may take a dozen rows more.
      state: ``result.state`` of a call that ended early, with the same operator, which one product that is not
        counted tells; ``v0`` then only gives the structure. The run goes on as if it had not been interrupted.
      keep_state: Whether the result holds its state, which is as large as the basis.
      save: Called with the state after each product, to write it down at once: the run uses its arrays up.
      loop: Where it runs; see ``hessabs.loops``. The projected problem is solved on the host in any case.

    Returns:
      A product that is not finite ends the run at once; it shows as NaN in all eigenvalues and residuals.

    Raises:
      ValueError: If a number is out of range, ``state`` has another shape or is of another operator, or the
        call is traced.

    Example:
      >>> result = eigsh(lambda v: jnp.arange(100.0) * v, jnp.ones(100), 3, rtol=1e-5)
      >>> result.eigenvalues.round(3), bool(result.converged.all())
      (array([99., 98., 97.]), True)

    References:
      Wu and Simon (2000), "Thick-restart Lanczos method for large symmetric eigenvalue problems"; Ruhe (1979)
      for the band form; Kuczynski and Wozniakowski (1992), "Estimating the largest eigenvalue by the power and
      Lanczos algorithms with a random start", for what the check shows.
    """
    if trees.is_traced(matvec, v0):
        raise ValueError(
            "eigsh solves its projected problem on the host and cannot be traced (jit, vmap, grad, pmap); use "
            "lanczos or power_iteration there."
        )
    loop = loops.choose(loop, matvec, v0)
    starts = _start_vectors(v0, block_size)
    form = bases.layout(starts[0], loop == "host")
    like = bases.to_row(starts[0], form)
    size = trees.size(like)
    k, block_size = checked_dimension("k", k, size), checked_dimension("block_size", block_size, size)
    num_vectors = _num_vectors(num_vectors, k, block_size, like)
    max_matvecs = 10 * max(2 * k + 20, 40) if max_matvecs is None else max_matvecs
    if which not in ("LA", "SA", "LM", "BE"):
        raise ValueError(f'`which` must be "LA", "SA", "LM" or "BE", got {which!r}.')
    require("be at least 0", rtol=rtol)
    if max_matvecs < k:
        raise ValueError(f"`max_matvecs` must be at least k={k}, got {max_matvecs}.")
    if loop == "device":
        matvec = trees.as_partial(matvec)
    wanted = Wanted(which, k, rtol, num_vectors, max_matvecs, trees.coarseness(starts[0]))
    if state is None:
        state = krylov.start(like, num_vectors + block_size, (bases.to_row(x, form) for x in starts))
    else:
        state = restart.take_up(state, like, num_vectors + block_size)
        restart.check_operator(matvec, form, state)
    goal = _next_look(state, wanted)  # where a run was interrupted may be a place to look
    while True:
        state = _advance(matvec, form, state, goal, loop, save)
        found, step = _look(state, wanted)
        if step in ("believe", "give up"):
            return _result(state, form, found, step == "believe", wanted, keep_state)
        if step != "go on":
            state = _MOVES[step](state, found, wanted)
        goal = _next_look(state, wanted, beyond=1)


def _next_look(state: KrylovState, wanted: Wanted, beyond: int = 0) -> int:
    # Looks come at the same numbers of rows, wherever a run was interrupted.
    now = krylov.standing(state)
    after = now.waiting[1]
    look = 1 if after else max(wanted.k + 1, _FIRST_LOOK)
    while look < now.multiplied - after + beyond:
        look += 1 + look // _LOOKS
    products = min(now.room, wanted.max_matvecs - now.num_matvecs)
    goal = min(after + look, now.multiplied + products)
    return goal if after else min(goal, wanted.num_vectors)


def _advance(
    matvec: MatVec, form: trees.Static, state: KrylovState, goal: int, loop: loops.Loop, save: Save | None
) -> KrylovState:
    if save is None:
        return krylov.expand(matvec, form, state, goal, loop)
    while (now := krylov.standing(state)).multiplied < min(goal, now.built) and now.finite:
        state = krylov.expand(matvec, form, state, now.multiplied + 1, loop)
        save(state)
    return state


def _look(state: KrylovState, wanted: Wanted) -> tuple[Ritz, Step]:
    now = krylov.standing(state)
    first, after = now.waiting
    num_rows, size, _ = bases.measure(state.basis)
    found = ritz.solve(state, wanted, np.arange(first if after else now.multiplied))
    small = found.residuals <= ritz.tolerance(found.values, found, wanted)
    enough = len(small) == wanted.k and bool(small.all())
    step: Step = "go on"
    if after:
        step = ritz.judge(state, found, wanted)
    elif now.multiplied == size:
        step = "believe" if enough else "give up"
    elif enough:
        step = "check"
    elif now.multiplied == now.built:
        step = "widen"
    elif now.multiplied >= wanted.num_vectors or now.built == num_rows:
        step = "restart"
    spent = now.num_matvecs >= wanted.max_matvecs or not now.finite
    return found, "give up" if spent and step != "believe" else step


@full_precision
def _restart(state: KrylovState, found: Ritz, wanted: Wanted) -> KrylovState:
    if int(state.waiting[1]):
        state = restart.rejoin(state)
    number = wanted.k + (wanted.num_vectors - wanted.k) // 2
    kept = ritz.solve(state, wanted._replace(k=number), krylov.standing(state).rows)
    return restart.recombine(state, kept.coefficients, spare=1)


def _widen(state: KrylovState, found: Ritz, wanted: Wanted) -> KrylovState:
    # The space is exhausted; if no direction is left either, only rounding is.
    return krylov.append(state, _direction(state))[0]


@full_precision
def _begin_check(state: KrylovState, found: Ritz, wanted: Wanted) -> KrylovState:
    # The complement of all that was searched would not do: part of what is missed may lie in what was, in
    # vectors that have not converged. They are dropped; the check itself finds again what is needed of them.
    now = krylov.standing(state)
    least = min(_CHECK_ROWS, bases.measure(state.basis)[1] - len(found.values))
    spare = now.built - now.multiplied + 1 + least
    state = restart.recombine(state, found.coefficients, spare)
    return restart.set_apart(state, _direction(state))


def _direction(state: KrylovState) -> Any:
    return bases.random_row(state.basis, (int(state.num_matvecs), int(state.built)))


_MOVES = {"restart": _restart, "widen": _widen, "check": _begin_check}


def _start_vectors(v0: Params, block_size: int) -> list[Params]:
    trees.check_floating(v0, "v0")
    if block_size == 1:
        return [v0]
    lead = {jnp.shape(x)[:1] for x in jax.tree.leaves(v0)}
    if lead != {(block_size,)}:
        raise ValueError(
            f"With `block_size`={block_size}, every leaf of `v0` needs a leading axis of that size, got "
            f"shapes {[jnp.shape(x) for x in jax.tree.leaves(v0)]}."
        )
    return [jax.tree.map(lambda x, i=i: x[i], v0) for i in range(block_size)]


def _num_vectors(num_vectors: int | None, k: int, block_size: int, row: Any) -> int:
    leaves = jax.tree.leaves(row)
    size, num_bytes = sum(x.size for x in leaves), sum(x.nbytes for x in leaves)
    if num_vectors is None:
        fitting = min(10 * k + 100, _BASIS_BYTES // num_bytes)
        return min(max(2 * k + 20, 40, k + 2 * block_size, fitting), size)
    least = min(k + max(block_size, 2), size)
    if not least <= num_vectors <= size:
        raise ValueError(f"`num_vectors` must lie in [{least}, {size}] for k={k}, got {num_vectors}.")
    return num_vectors


def _result(
    state: KrylovState, form: trees.Static, found: Ritz, believed: bool, wanted: Wanted, keep_state: bool
) -> EigshResult:
    k = wanted.k
    number = len(found.values) if bool(state.finite) else 0
    values, residuals = np.full(k, np.nan), np.full(k, np.nan)
    values[:number] = found.values[:number]
    size = np.abs(found.values[:number])
    residuals[:number] = found.residuals[:number] / np.where(size > 0, size, 1)
    residuals = np.where(values == 0, residuals, np.maximum(residuals, wanted.coarseness / 2))
    vectors = bases.to_params(bases.combine(state.basis, found.coefficients.T[:number], k), form)
    flags = np.full(k, believed and number == k)
    return EigshResult(values, vectors, residuals, flags, int(state.num_matvecs), state if keep_state else None)
