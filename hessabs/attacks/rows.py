"""Iterations over examples that finish one by one.

An iteration works on rows: a NamedTuple of arrays that share a leading example axis, with a field ``done``.
A row that is done never changes again. Under a compiled loop it is masked. A loop that Python drives throws
finished rows out of the computation: whenever a smaller size of the form 2^k or 3 * 2^k holds those that are
left, the next iterations run on that many rows, so the number of shapes, hence of compilations, is logarithmic.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs import collectives, trees
from hessabs.curvature import loops

Rows = TypeVar("Rows", bound=Any)
_FEWEST = 32  # below this many rows an iteration costs its overhead, and compiling a smaller one does not pay


def iterate(
    step: Partial, rows: Rows, num_steps: int, loop: loops.Loop | None = None, *, finishes: bool = True
) -> Rows:
    """Apply a step to rows until all are done, ``num_steps`` times at most.

    Args:
      step: ``step(rows, i) -> rows``, a Partial of a module-level function; i is the iteration, int32. Rows
        must not influence each other. Compiled once for each number of rows.
      rows: A NamedTuple with a field ``done``, bool (n,), every leaf with a leading axis of n.
      num_steps: Largest number of steps.
      loop: ``"host"``, ``"device"`` or None, as in ``hessabs.curvature.loops``.
      finishes: Whether rows may be done before the last step. If not, nobody asks: under jit, with the rows on
        several devices, the question is a collective at every step.

    Returns:
      The rows, in their first order.
    """
    if loops.choose(loop, step, rows) == "device":
        return _jitted_on_device(step, rows, num_steps, finishes=finishes)
    everything, places = None, None  # where rows were thrown out: all of them, and which ones are left
    for i in range(num_steps):
        if trees.is_traced(rows):  # the loss closes over somebody's tracers: Python cannot drive
            return _on_device(step, rows, num_steps, i, finishes=finishes)
        done = np.asarray(rows.done)
        left = int(np.sum(~done))
        if left == 0:
            break
        size = _size_for(left)
        if size < len(done):
            everything = _put_back(everything, places, rows)
            keep = np.argsort(done, kind="stable")[:size]  # those not done first, in order
            places = keep if places is None else places[keep]
            rows = jax.tree.map(lambda x, keep=keep: np.asarray(x)[keep], rows)
        rows = _jitted_advance(step, rows, np.int32(i))
    return rows if places is None else jax.tree.map(jnp.asarray, _put_back(everything, places, rows))


def _advance(step: Partial, rows: Rows, i: Any) -> Rows:
    def freeze(old: jax.Array, new: jax.Array) -> jax.Array:
        if new is old:
            return old
        return jnp.where(rows.done.reshape(-1, *(1,) * (old.ndim - 1)), old, new)

    return jax.tree.map(freeze, rows, step(rows, i))


_jitted_advance = jax.jit(_advance)


def _on_device(step: Partial, rows: Rows, num_steps: Any, start: Any = 0, *, finishes: bool) -> Rows:
    def go_on(carry: tuple[Rows, jax.Array]) -> jax.Array:
        more = carry[1] < num_steps
        return ~jnp.all(carry[0].done) & more if finishes else more

    def body(carry: tuple[Rows, jax.Array]) -> tuple[Rows, jax.Array]:
        return _advance(step, *carry), carry[1] + 1

    rows = collectives.varying(rows)
    return jax.lax.while_loop(go_on, body, (rows, jnp.asarray(start, jnp.int32)))[0]


_jitted_on_device = jax.jit(_on_device, static_argnames="finishes")


def _size_for(left: int) -> int:
    power = max(_FEWEST, 1 << (left - 1).bit_length())
    return power * 3 // 4 if power > _FEWEST and left <= power * 3 // 4 else power


def _put_back(everything: Rows | None, places: np.ndarray | None, rows: Rows) -> Rows:
    if places is None:
        return jax.tree.map(np.array, rows)

    def put(whole: np.ndarray, part: Any) -> np.ndarray:
        whole[places] = np.asarray(part)
        return whole

    return jax.tree.map(put, everything, rows)
