"""Iterations over examples that finish one by one.

An iteration works on rows: a NamedTuple of arrays that share a leading example axis, with a field ``done``.
Scalars and random keys among them belong to all rows and stay as they are. A row that is done never changes
again. Under a compiled loop it is masked. A loop that Python drives throws finished rows out of the
computation: whenever a smaller size of the form 2^k or 3 * 2^k holds those that are left, the next iterations
run on that many rows, so the number of shapes, hence of compilations, is logarithmic. There the rows go in
parts, on all cores and none larger than the caches hold.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from hessabs import batch_axis, collectives, loops, programs, trees
from hessabs.cpu import footprint, side_by_side
from hessabs.typing import Params

Rows = TypeVar("Rows", bound=Any)
Problem: TypeAlias = tuple[Any, Params, trees.Static]
"""What the steps of an attack are bound to: a loss that is a pytree, params, and static options."""
_PART = 128  # rows of a part that has a thread of its own, at least
_SMALLEST = 16  # rows of a part, however large the arrays are
_FEWEST = 32  # below this many rows an iteration costs its overhead, and compiling a smaller one does not pay


def iterate(
    step: Partial, rows: Rows, num_steps: int, loop: loops.Loop | None = None, *, finishes: bool = True
) -> Rows:
    """Apply ``step(rows, i) -> rows`` until all rows are done, ``num_steps`` times at most.

    The step is a Partial of a module-level function, compiled once for each number of rows. ``finishes`` is
    False where no row is done before the last step, and then nobody asks: under jit, with the rows on
    several devices, the question is a collective at every step. Outside of jit each device asks for its own.
    No derivative goes through, nor through what the step closes over: a compiled loop has none.
    """
    rows = trees.constant(rows)
    if loops.choose(loop, step, rows) == "device":
        return _compiled_loop(step, rows, num_steps, trees.Static(finishes), trees.Static(_mesh_of(rows)))
    if num_steps == 0 or _all_done(rows):
        return rows
    left, places = _throw_out(rows)
    cuts = _cut(step, left)
    parts = [left] if len(cuts) == 1 else [_rows_of(left, cut) for cut in cuts]
    first = _jitted_advance(step, parts[0], np.int32(0))
    if trees.is_traced(first):  # the loss closes over somebody's tracers: Python cannot drive
        return _on_device(step, rows, num_steps, trees.Static(finishes))
    drive = functools.partial(_drive, _compiled_once(step), num_steps=num_steps)
    begun = [(first, 1), *((part, 0) for part in parts[1:])]
    driven = [drive(begun[0])] if len(begun) == 1 else side_by_side.run(drive, begun)
    return _put_back(rows, places, batch_axis.map_examples(functools.partial(_joined, cuts), *driven))


def choose(flags: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Return the rows of ``yes`` where a flag is True, those of ``no`` elsewhere."""
    return jnp.where(flags.reshape(-1, *(1,) * (no.ndim - 1)), yes, no)


def _cut(step: Partial, rows: Rows) -> list[slice]:
    whole = [slice(0, len(rows.done))]
    if len(rows.done) < 2 * _SMALLEST or jax.default_backend() != "cpu" or jax.config.values["jax_disable_jit"]:
        return whole
    if any(isinstance(x, jax.Array) and len(x.devices()) > 1 for x in jax.tree.leaves(rows)):
        return whole
    size = footprint.bytes_per_row(_jitted_advance, len(rows.done), step, rows, np.int32(0))
    return side_by_side.cut(len(rows.done), _PART, max(_SMALLEST, int(footprint.CACHED / max(size, 1))))


def _compiled_once(step: Partial) -> Callable[[Rows, int], Rows]:
    # Two threads that meet a new number of rows at once would both compile it.
    known, compiling = set[int](), threading.Lock()

    def advance(rows: Rows, i: int) -> Rows:
        size = len(rows.done)
        if size in known:
            return _jitted_advance(step, rows, np.int32(i))
        with compiling:
            rows = jax.block_until_ready(_jitted_advance(step, rows, np.int32(i)))
        known.add(size)
        return rows

    return advance


def _drive(advance: Callable[[Rows, int], Rows], begun: tuple[Rows, int], *, num_steps: int) -> Rows:
    rows, steps_taken = begun
    thrown_out = []
    for i in range(steps_taken, num_steps):
        if _all_done(rows):
            break
        left, places = _throw_out(rows)
        if places is not None:
            thrown_out.append((rows, places))
        rows = advance(left, i)
    for before, places in reversed(thrown_out):
        rows = _put_back(before, places, rows)
    return rows


def _all_done(rows: Rows) -> bool:
    return bool(np.asarray(rows.done).all())


def _throw_out(rows: Rows) -> tuple[Rows, np.ndarray | None]:
    done = np.asarray(rows.done)
    size = _size_for(int(np.sum(~done)))
    if size >= len(done):
        return rows, None
    places = np.argsort(done, kind="stable")[:size]  # those not done first, in order
    return _rows_of(rows, places), places


def _rows_of(rows: Rows, places: Any) -> Rows:
    def take(x: Any) -> Any:
        if isinstance(places, slice) or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x[places]
        return np.asarray(x)[places]

    return batch_axis.map_examples(take, rows)


def _put_back(before: Rows, places: np.ndarray | None, rows: Rows) -> Rows:
    if places is None:
        return rows

    def put(whole: Any, part: Any) -> jax.Array:
        if jnp.issubdtype(whole.dtype, jax.dtypes.prng_key):
            return whole  # no step changes the keys of examples
        whole = np.array(whole)
        whole[places] = np.asarray(part)
        return jnp.asarray(whole)

    return batch_axis.map_examples(put, before, rows)


def _joined(cuts: list[slice], *parts: Any) -> Any:
    if len(parts) == 1:
        return parts[0]
    begins = [0, *(cut.stop for cut in cuts[:-1])]  # the last part may begin within the one before it
    return jnp.concatenate([x[at - cut.start :] for x, cut, at in zip(parts, cuts, begins, strict=True)])


def _advance(step: Partial, rows: Rows, i: Any) -> Rows:
    def freeze(old: jax.Array, new: jax.Array) -> jax.Array:
        return old if new is old else choose(rows.done, old, trees.constant(new))

    return batch_axis.map_examples(freeze, rows, step(rows, i))


_jitted_advance = programs.jit(_advance)


def _on_device(step: Partial, rows: Rows, num_steps: Any, finishes: trees.Static) -> Rows:
    def go_on(carry: tuple[Rows, jax.Array]) -> jax.Array:
        more = carry[1] < num_steps
        return ~jnp.all(carry[0].done) & more if finishes.value else more

    def body(carry: tuple[Rows, jax.Array]) -> tuple[Rows, jax.Array]:
        return _advance(step, *carry), carry[1] + 1

    rows = collectives.varying(rows)
    return jax.lax.while_loop(go_on, body, (rows, jnp.int32(0)))[0]


@programs.jit
def _compiled_loop(
    step: Partial, rows: Rows, num_steps: Any, finishes: trees.Static, mesh: trees.Static
) -> Rows:
    if mesh.value is None:
        return _on_device(step, rows, num_steps, finishes)
    everywhere, split = P(), P(mesh.value.axis_names[0])
    carries = iter(batch_axis.carries_examples(rows))
    specs = jax.tree.map(lambda x: split if next(carries) else everywhere, rows)
    run = functools.partial(_on_device, finishes=finishes)
    in_specs = (everywhere, specs, everywhere)
    on_each = jax.shard_map(run, mesh=mesh.value, in_specs=in_specs, out_specs=specs, check_vma=False)
    return on_each(step, rows, jnp.asarray(num_steps, jnp.int32))


def _mesh_of(rows: Rows) -> Mesh | None:
    # The mesh of one axis over which some of the rows are split; None where they are not, or are traced.
    if trees.is_traced(rows):
        return None
    for x in jax.tree.leaves(rows):
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated:
            mesh = sharding.mesh
            return mesh if isinstance(mesh, Mesh) and len(mesh.axis_names) == 1 and sharding.spec[0] else None
    return None


def _size_for(left: int) -> int:
    power = max(_FEWEST, 1 << (left - 1).bit_length())
    return power * 3 // 4 if power > _FEWEST and left <= power * 3 // 4 else power
