"""Power iteration: eigenvalues of largest magnitude of a symmetric operator, one or several.

The loop stops on the relative residual ``||A v - eigenvalue v|| / |eigenvalue|``, which bounds the distance
from the eigenvalue to the spectrum, and not on the change of the eigenvalue, which may be small far from any.
Several pairs are found by projecting out those before: simple, and slow where eigenvalues lie close together.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import loops, programs, trees
from hessabs.checks import count, require
from hessabs.curvature.precision import full_precision
from hessabs.typing import MatVec, Params


class PowerIterationResult(NamedTuple):
    """What ``power_iteration`` found, and how well."""

    eigenvalue: jax.Array  # shape (), at least float32: the Rayleigh quotient, with its sign
    eigenvector: Params  # like v0, norm 1 (or 0): the best start for the next call
    residual: jax.Array  # shape (), at least float32: ||A v - eigenvalue v|| / |eigenvalue|
    num_iters: jax.Array  # shape (), int32: products computed
    converged: jax.Array  # shape (), bool: residual <= rtol, and the eigenvector is not 0


def power_iteration(
    matvec: MatVec, v0: Params, *, max_iters: int = 20, rtol: float = 1e-2, loop: loops.Loop | None = None
) -> PowerIterationResult:
    """Find the eigenvalue of largest magnitude of a symmetric operator.

    Each iteration is one product: ``w = A v; eigenvalue = v . w; v = w / ||w||``. A zero operator gives
    eigenvalue 0 and residual 0; a zero ``v0`` gives eigenvalue 0, is returned as it is and has not converged;
    a product that is not finite ends the loop at once and shows in the eigenvalue and the residual.

    Args:
      matvec: The operator, from a pytree to a pytree of the same structure. One that is a pytree itself (of
        ``hessian``, or a ``jax.tree_util.Partial``) is compiled together with the iteration, once for all
        params of the same shapes; any other callable is called as it is.
      v0: Start vector, a pytree of floating-point arrays, of any norm. The eigenvector of an earlier call is
        the best one.
      max_iters: Largest number of products, at least 1.
      rtol: Stop when the relative residual is at most this. Then an eigenvalue lies within
        ``rtol * |eigenvalue|`` of the one returned. With params in half precision no less than their epsilon
        (0.8 % of bfloat16) can be asked for, and no residual below half of it is reported.
      loop: Where it runs; see ``hessabs.loops``.

    Returns:
      A ``PowerIterationResult``; eigenvalue and residual are those of its ``eigenvector``.

    Raises:
      ValueError: If a number is out of range, or the product has another structure than ``v0``.

    Example:
      >>> import jax.numpy as jnp
      >>> result = power_iteration(lambda v: jnp.array([1.0, -3.0]) * v, jnp.ones(2), rtol=1e-3)
      >>> round(float(result.eigenvalue), 3), bool(result.converged)
      (-3.0, True)

    References:
      Yao et al. (2018), arXiv:1802.08241, Algorithm 1, with the residual in place of the change of the
      eigenvalue as the test to stop.
    """
    max_iters = count(max_iters=max_iters)
    require("be at least 0", rtol=rtol)
    chosen = loops.choose(loop, matvec, v0)
    compiled = loops.is_compiled(matvec)
    if chosen == "host":
        step: Callable[..., _State] = _jitted_step if compiled else _step
        state = _init(v0)
        # Reading the flag waits for the product, which the next one needs anyway; what it buys is every
        # product after convergence.
        for _ in range(max_iters):
            state = step(matvec, state, rtol)
            if trees.is_traced(state):
                break
            if bool(state.done):
                return _result(state, rtol)
        else:
            return _result(state, rtol)
        # The operator closes over somebody's tracers, which only its product shows: Python cannot drive.
        if loop == "host":
            loops.choose("host", state)
    elif compiled and not trees.is_traced(matvec, v0):
        return _jitted_device_loop(matvec, v0, max_iters, rtol)
    return _device_loop(matvec, v0, max_iters, rtol)


def deflated_power_iteration(
    matvec: MatVec, v0: Params, *, max_iters: int = 100, rtol: float = 1e-3, loop: loops.Loop | None = None
) -> PowerIterationResult:
    """Find the eigenvalues of largest magnitude, one after another, as PyHessian does; it runs under a trace.

    ``eigsh`` needs far fewer products.

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


class _State(NamedTuple):
    vector: Params  # the unit vector of the last product
    product: Params  # A vector; its direction is the next vector
    eigenvalue: jax.Array
    residual: jax.Array
    num_iters: jax.Array
    done: jax.Array
    started: jax.Array  # whether v0 is not 0


@jax.jit
def _init(v0: Params) -> _State:
    unit, norm = trees.normalize(v0)
    zero = jnp.zeros_like(norm)
    return _State(unit, unit, zero, zero, jnp.zeros((), jnp.int32), jnp.zeros((), bool), norm != 0)


@jax.jit
def _direction(product: Params) -> Params:
    return trees.normalize(product)[0]


@jax.jit
def _advance(state: _State, vector: Params, product: Params, rtol: Any) -> _State:
    product = jax.tree.map(lambda w, v: w.astype(v.dtype), product, vector)
    # In bfloat16 a unit vector has another norm than 1, and a residual of 0 hides the rounding of the product.
    eigenvalue = trees.vdot(vector, product) * trees.safe_inverse(trees.vdot(vector, vector))
    rounding = trees.coarseness(vector)
    error = jax.tree.map(lambda w, v: w - (eigenvalue * v).astype(w.dtype), product, vector)
    _, error_norm = trees.normalize(error)
    relative = jnp.maximum(error_norm * trees.safe_inverse(jnp.abs(eigenvalue)), rounding / 2)
    residual = jnp.where(eigenvalue == 0, error_norm, relative)
    done = (residual <= jnp.maximum(rtol, rounding)) | ~jnp.isfinite(eigenvalue)
    return _State(vector, product, eigenvalue, residual, state.num_iters + 1, done, state.started)


def _step(matvec: MatVec, state: _State, rtol: Any) -> _State:
    # What is beside the product is compiled, also where the operator is not.
    vector = _direction(state.product)
    product = matvec(vector)
    trees.check_like(product, vector, "matvec(v0)", "v0")
    return _advance(state, vector, product, rtol)


def _device_loop(matvec: MatVec, v0: Params, max_iters: Any, rtol: Any) -> PowerIterationResult:
    def proceed(state: _State) -> Any:
        return ~state.done & (state.num_iters < max_iters)

    return _result(jax.lax.while_loop(proceed, lambda state: _step(matvec, state, rtol), _init(v0)), rtol)


_jitted_step = programs.jit(_step)
_jitted_device_loop = programs.jit(_device_loop)


def _result(state: _State, rtol: Any) -> PowerIterationResult:
    found = state.eigenvalue, state.vector, state.residual, state.num_iters
    small = state.residual <= jnp.maximum(rtol, trees.coarseness(state.vector))
    return PowerIterationResult(*found, small & state.started)


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
