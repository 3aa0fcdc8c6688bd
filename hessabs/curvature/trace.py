"""Stochastic estimates of trace, diagonal and Frobenius norm from products alone, each with its standard error.

Probes are Rademacher vectors (entries +1 and -1): among independent entries they give the smallest variance.
"""

import math
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import loops, programs, trees
from hessabs.checks import count
from hessabs.cpu.blas import one_blas_thread
from hessabs.curvature import basis as bases
from hessabs.curvature import krylov
from hessabs.curvature.precision import full_precision
from hessabs.typing import MatVec, Params


class Estimate(NamedTuple):
    """A mean over random probes."""

    value: Any  # what was asked for
    standard_error: Any  # of the same shape: one standard deviation of `value`
    num_matvecs: int  # products computed


@one_blas_thread
@full_precision
def trace(
    matvec: MatVec,
    like: Params,
    key: jax.Array,
    *,
    num_matvecs: int = 60,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    loop: loops.Loop | None = None,
) -> Estimate:
    """Estimate the trace of a symmetric operator.

    Args:
      matvec, loop: As in ``power_iteration``.
      like: A pytree of the structure of its vectors.
      key: A random key.
      num_matvecs: Number of products: at least 2, and at least 6 for ``"hutch++"``.
      method: ``"hutchinson"``, or ``"hutch++"``, which spends a third of the products on a basis of the range,
        takes the trace there exactly and estimates only the rest: better when few eigenvalues dominate. It
        keeps that many vectors in memory. Where there are no more dimensions than products it is exact, with
        one product for each.

    Returns:
      An ``Estimate`` of scalars; infinite or NaN products show in it.

    Raises:
      ValueError: If there are too few products or the method is unknown.

    Example:
      >>> matvec = lambda v: jnp.array([1.0, 2.0, 4.0]) * v
      >>> result = trace(matvec, jnp.ones(3), jax.random.key(0), num_matvecs=2)
      >>> float(result.value), float(result.standard_error)  # exact for diagonal operators
      (7.0, 0.0)

    References:
      Hutchinson (1989); Meyer et al. (2021), arXiv:2010.09649, Algorithm 1.
    """
    if method == "hutchinson":
        return _estimate(trees.vdot, matvec, like, key, num_matvecs, loop)
    if method != "hutch++":
        raise ValueError(f'`method` must be "hutchinson" or "hutch++", got {method!r}.')
    num_matvecs = count(0, num_matvecs=num_matvecs)
    if num_matvecs < 6:
        raise ValueError(f"Hutch++ needs `num_matvecs` of at least 6, got {num_matvecs}.")
    trees.check_floating(like, "like")
    chosen = loops.choose(loop, matvec, like, key)
    form = bases.layout(like, chosen == "host")
    row = bases.to_row(like, form)
    dtype = bases.measure(krylov.start(row, 1).basis)[2]
    rank = num_matvecs // 3

    def sandwich(vector: Any) -> Any:
        # Read at once where it can be: products are not sent after one another without end.
        value = bases.dot(vector, krylov.multiply(matvec, form, vector))
        return value if trees.is_traced(value) else float(value)

    size = trees.size(like)
    if size <= num_matvecs:  # exact for no more; probes of so few entries agree by chance
        units = (bases.to_row(trees.cut_like(unit, like), form) for unit in np.eye(size, dtype=np.float32))
        return Estimate(jnp.asarray(sum(map(sandwich, units)), dtype), jnp.zeros((), dtype), size)
    sketch_key, probe_key = jax.random.split(key)
    state = krylov.start(row, rank)
    for sample in jax.random.split(sketch_key, rank):
        product = krylov.multiply(matvec, form, bases.to_row(_rademacher(sample, like), form))
        state, _ = krylov.append(state, product)

    exact = sum(sandwich(bases.row(state.basis, i)) for i in range(rank))
    samples = []
    for sample in jax.random.split(probe_key, num_matvecs - 2 * rank):
        probe = bases.to_row(_rademacher(sample, like), form)
        samples.append(sandwich(bases.project_out(state.basis, state.built, (0, 0), probe)[0]))
    rest = jnp.asarray(samples, dtype)
    error = jnp.std(rest, ddof=1) / math.sqrt(len(samples))
    return Estimate(jnp.asarray(exact + jnp.mean(rest), dtype), error, num_matvecs)


def diagonal(
    matvec: MatVec, like: Params, key: jax.Array, *, num_matvecs: int = 60, loop: loops.Loop | None = None
) -> Estimate:
    """Estimate the diagonal of a symmetric operator as the mean of ``z * (A z)``.

    Args:
      matvec, like, key, num_matvecs, loop: As in ``trace``, which raises the same errors.

    Returns:
      An ``Estimate`` of pytrees like ``like``, in at least float32.

    Example:
      >>> matvec = lambda v: jnp.array([1.0, 2.0]) * v
      >>> diagonal(matvec, jnp.ones(2), jax.random.key(0), num_matvecs=2).value
      Array([1., 2.], dtype=float32)

    References:
      Bekas, Kokiopoulou and Saad (2007), "An estimator for the diagonal of a matrix".
    """
    return _estimate(_elementwise, matvec, like, key, num_matvecs, loop)


def frobenius_norm(
    matvec: MatVec, like: Params, key: jax.Array, *, num_matvecs: int = 60, loop: loops.Loop | None = None
) -> Estimate:
    """Estimate the Frobenius norm of an operator, from ``E ||A z||^2 = ||A||_F^2``.

    Args:
      matvec, like, key, num_matvecs, loop: As in ``trace``, which raises the same errors.

    Returns:
      An ``Estimate`` of scalars; the standard error is that of the square, to first order.

    Example:
      >>> matvec = lambda v: jnp.array([3.0, 4.0]) * v
      >>> float(frobenius_norm(matvec, jnp.ones(2), jax.random.key(0), num_matvecs=2).value)
      5.0
    """
    square = _estimate(_square, matvec, like, key, num_matvecs, loop)
    norm = jnp.sqrt(square.value)
    return Estimate(norm, square.standard_error * trees.safe_inverse(2 * norm), num_matvecs)


class _Moments(NamedTuple):
    mean: Any
    squares: Any  # sum of squared deviations from the mean
    number: jax.Array


def _estimate(
    statistic: Callable[[Any, Any], Any],
    matvec: MatVec,
    like: Params,
    key: jax.Array,
    num_matvecs: int,
    loop: loops.Loop | None,
) -> Estimate:
    num_matvecs = count(0, num_matvecs=num_matvecs)
    if num_matvecs < 2:
        raise ValueError(f"`num_matvecs` must be at least 2, for a standard error, got {num_matvecs}.")
    trees.check_floating(like, "like")
    keys = jax.random.split(key, num_matvecs)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(statistic, like, like))
    moments = _Moments(zero, zero, jnp.zeros((), jnp.int32))
    name = trees.Static(statistic)
    if loops.choose(loop, matvec, like, key) == "host":
        sample, ahead = _jitted_sample if loops.is_compiled(matvec) else _sample, deque[Any]()
        for one in keys:
            moments = sample(name, matvec, like, one, moments)
            loops.keep_pace(ahead, moments.mean)
    else:
        moments = jax.lax.fori_loop(
            0, num_matvecs, lambda i, moments: _sample(name, matvec, like, keys[i], moments), moments
        )
    scale = num_matvecs * (num_matvecs - 1)
    error = jax.tree.map(lambda s: jnp.sqrt(s / scale), moments.squares)
    return Estimate(moments.mean, error, num_matvecs)


def _sample(name: trees.Static, matvec: MatVec, like: Params, key: jax.Array, moments: _Moments) -> _Moments:
    probe = _rademacher(key, like)
    return _update(name, probe, matvec(probe), moments)


@jax.jit
def _update(name: trees.Static, probe: Params, product: Params, moments: _Moments) -> _Moments:
    trees.check_like(product, probe, "matvec(like)", "like")
    sample, count = name.value(probe, product), moments.number + 1
    # Welford's update: no difference of large sums.
    mean = jax.tree.map(lambda m, s: m + (s - m) / count, moments.mean, sample)
    squares = jax.tree.map(
        lambda q, s, old, new: q + (s - old) * (s - new), moments.squares, sample, moments.mean, mean
    )
    return _Moments(mean, squares, count)


def _rademacher(key: jax.Array, like: Params) -> Params:
    return trees.random_like(key, like, jax.random.rademacher)


_jitted_sample = programs.jit(_sample)


def _elementwise(probe: Params, product: Params) -> Params:
    return jax.tree.map(lambda z, w: trees.upcast(z) * w, probe, product)


def _square(probe: Params, product: Params) -> jax.Array:
    del probe
    return trees.vdot(product, product)
