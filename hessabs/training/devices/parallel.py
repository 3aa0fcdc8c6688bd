"""The functions of a training step on several devices: one all-reduce an update, none for a micro-batch.

Every device adds up the gradients of its own examples, in its own row of the state
(``hessabs.training.devices.rows``); the sums, and what else an update needs, travel as one vector when the
update is made.

Which examples a device gets depends on what is trained. Where examples do not influence each other, every batch
is dealt out like cards, and the result is that of one device up to rounding. Batch norm, dropout, and the rules
that compare micro-batches see whole ones: of as many as there are devices, or a multiple, each device gets its
own, and a single one is split by XLA, which sums what batch norm needs over the devices and, then, the gradient
as well. Gradients are those of one device up to rounding here too. Each device draws the dropout of the micro-
batches that it has. The running statistics of batch norm are the mean over the devices, each of which has moved
its own by the micro-batches that it saw; one device moves them by all, one after the other.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs import collectives
from hessabs.attacks import num_replaced
from hessabs.cpu import convolutions
from hessabs.models.layers import later_keys
from hessabs.training.devices.mesh import DATA
from hessabs.training.devices.rows import AVERAGED, FIRST, PER_DEVICE, SUMMED, collect, is_mean, row_specs
from hessabs.training.state import TrainState
from hessabs.training.step import StepFunctions

_KEYS = 2**20  # between the devices' numbers of micro-batches, which draw the random keys of attacks


def on_mesh(
    functions: StepFunctions, mesh: Mesh, *, dealt: bool, micro_batch_size: int, passes: int = 1
) -> StepFunctions:
    """Compile the functions of a step for several devices.

    Args:
      functions: Those of one device, as plain Python; with ``dealt``, for micro-batches of one device's part.
      mesh: The devices.
      dealt: Whether the examples of a batch are dealt out, see ``hessabs.training.devices.mesh.own_rows``.
      micro_batch_size: Examples of a micro-batch, all devices together.
      passes: How often the objective draws dropout for a micro-batch.

    Returns:
      The same for a state that ``spread`` made.
    """
    jit = functools.partial(jax.jit, donate_argnums=0)
    plain = functions

    def attacked(state: TrainState, batch: Any, fraction: Any) -> TrainState:
        if dealt:
            fraction = _share(fraction, micro_batch_size)
        return plain.accumulate_adversarial(state, batch, fraction)

    def accumulate(function: Callable[..., TrainState], passes: int) -> Any:
        local = jit(_local(function, mesh, passes))
        return local if dealt else _BySize(jit(_global(function, mesh)), local, micro_batch_size)

    def update(accumulate: Callable[..., TrainState], update: Callable[..., TrainState]) -> Any:
        return jit(_at_once(accumulate, plain.apply_update, mesh) if dealt else _global(update, mesh))

    return StepFunctions(
        accumulate=accumulate(plain.accumulate, 1),
        accumulate_adversarial=accumulate(attacked, passes),
        apply_update=jit(_reduced(plain.apply_update, mesh)),
        update=update(plain.accumulate, plain.update),
        update_adversarial=update(attacked, plain.update_adversarial),
        perturb=plain.perturb,
    )


class _BySize(NamedTuple):
    """Two jitted functions as one: for a single micro-batch, split by XLA, and for one or more a device."""

    single: Any
    several: Any
    micro_batch_size: int

    def _of(self, batch: Any) -> Any:
        return self.single if batch["weight"].shape[0] == self.micro_batch_size else self.several

    def __call__(self, state: TrainState, batch: Any, *rest: Any) -> TrainState:
        return self._of(batch)(state, batch, *rest)

    def lower(self, state: Any, batch: Any, *rest: Any) -> Any:
        return self._of(batch).lower(state, batch, *rest)

    def _cache_size(self) -> int:
        return self.single._cache_size() + self.several._cache_size()


def _share(fraction: Any, micro_batch_size: int) -> jax.Array:
    # Of the first m examples of a micro-batch this device holds every size-th.
    size = collectives.size(DATA)
    replaced = num_replaced(fraction, micro_batch_size) - collectives.index(DATA)
    return jnp.maximum(0, -(-replaced // size)) * (size / micro_batch_size)


def _local(function: Callable[..., TrainState], mesh: Mesh, passes: int) -> Callable[..., TrainState]:
    """Run ``accumulate`` on each device by itself, on its part of the batch.

    Args:
      function: ``(state, batch, *rest) -> state`` of one device.
      mesh: The devices.
      passes: How often it draws dropout.

    Returns:
      The same for a state with rows; no device hears of another.
    """

    cut = convolutions.in_parts(function)  # of the device's own part: nothing is moved

    def local(state: TrainState, batch: Any, *rest: Any) -> TrainState:
        # One device would have drawn for the micro-batches of the devices before, and then of those behind.
        here = collectives.index(DATA)
        state = _with_keys(_numbered(_without_row(state)), passes * here)
        state = cut(state, batch, *rest)
        return _with_row(_with_keys(state, passes * (mesh.size - 1 - here)), numbered=True)

    return _mapped(local, mesh, P(DATA))


def _reduced(function: Callable[..., TrainState], mesh: Mesh) -> Callable[..., TrainState]:
    """Run ``apply_update`` on the sum over the devices; one all-reduce.

    Args:
      function: ``(state, *rest) -> state`` of one device.
      mesh: The devices.

    Returns:
      The same for a state with rows.
    """

    def reduced(state: TrainState, *rest: Any) -> TrainState:
        return _with_row(function(_total(_without_row(state)), *rest))

    return _mapped(reduced, mesh)


def _at_once(
    accumulate: Callable[..., TrainState], apply_update: Callable[..., TrainState], mesh: Mesh
) -> Callable[..., TrainState]:
    """Run ``update`` on a batch of which each device has a part; one all-reduce.

    Args:
      accumulate: ``(state, batch, *fraction) -> state`` of one device.
      apply_update: ``(state, lr_scale) -> state`` of one device.
      mesh: The devices.

    Returns:
      ``(state, batch, *fraction, lr_scale) -> state`` for a state with rows.
    """

    cut = convolutions.in_parts(accumulate)

    def update(state: TrainState, batch: Any, *rest: Any) -> TrainState:
        *fraction, lr_scale = rest
        state = cut(_numbered(_without_row(state)), batch, *fraction)
        state = _without_number(state)
        return _with_row(apply_update(_total(state), lr_scale))

    return _mapped(update, mesh, P(DATA))


def _global(function: Callable[..., TrainState], mesh: Mesh) -> Callable[..., TrainState]:
    """Run a function of a batch as if there were one device: XLA splits the work and sums where it must.

    Args:
      function: ``(state, batch, *rest) -> state`` of one device, ``accumulate`` or ``update``.
      mesh: The devices.

    Returns:
      The same for a state with rows.
    """

    def run(state: TrainState, batch: Any, *rest: Any) -> TrainState:
        one = collect(state)
        # What was accumulated before stays where it is: only what this call adds is added.
        empty = {name: jax.tree.map(jnp.zeros_like, getattr(one, name)) for name in SUMMED}
        new = function(one._replace(**empty), batch, *rest)
        first = jnp.arange(mesh.size) == 0

        def add(rows: jax.Array, x: jax.Array) -> jax.Array:
            return rows + first.reshape(-1, *(1,) * x.ndim).astype(rows.dtype) * x[None]

        def repeat(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x[None], (mesh.size, *x.shape))

        added = {name: jax.tree.map(add, getattr(state, name), getattr(new, name)) for name in SUMMED}
        same = {name: jax.tree.map(repeat, getattr(new, name)) for name in AVERAGED + FIRST}
        return new._replace(**added, **same)

    def constrained(state: TrainState, batch: Any, *rest: Any) -> TrainState:
        fields: Any = (
            jax.lax.with_sharding_constraint(field, NamedSharding(mesh, spec))
            for field, spec in zip(run(state, batch, *rest), row_specs(), strict=True)
        )
        return TrainState(*fields)

    return constrained


def _mapped(function: Callable[..., TrainState], mesh: Mesh, *batch: P) -> Callable[..., TrainState]:
    def run(state: TrainState, *rest: Any) -> TrainState:
        specs = (row_specs(), *batch, *(P(),) * (len(rest) - len(batch)))
        # check_vma=False: the gradient of replicated params must not bring a sum per micro-batch with it.
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=row_specs(), check_vma=False)(
            state, *(jax.tree.map(jnp.asarray, x) for x in rest)
        )

    return run


def _without_row(state: TrainState) -> TrainState:
    rows = {name: jax.tree.map(lambda x: x[0], getattr(state, name)) for name in PER_DEVICE}
    return state._replace(**rows)


def _with_row(state: TrainState, *, numbered: bool = False) -> TrainState:
    if numbered:
        state = _without_number(state)
    rows = {name: jax.tree.map(lambda x: x[None], getattr(state, name)) for name in PER_DEVICE}
    return state._replace(**rows)


def _with_keys(state: TrainState, later: jax.Array) -> TrainState:
    return state._replace(model_state=later_keys(state.model_state, later))


def _numbered(state: TrainState) -> TrainState:
    # An attack draws from the number of the micro-batch: no two devices must draw the same.
    return state._replace(parts=state.parts + _KEYS * collectives.index(DATA))


def _without_number(state: TrainState) -> TrainState:
    return state._replace(parts=state.parts - _KEYS * collectives.index(DATA))


def _total(state: TrainState) -> TrainState:
    size = collectives.size(DATA)
    bad = state.nonfinite_update.astype(jnp.float32)
    travels = {
        **{name: getattr(state, name) for name in SUMMED},
        **{name: jax.tree.map(lambda x: x / size, getattr(state, name)) for name in AVERAGED},
        "bad": bad,
        "bad_devices": (bad > 0).astype(jnp.float32),
    }
    vector, unravel = ravel_pytree(travels)
    total = unravel(collectives.psum(vector, DATA))
    # Those that know of an update that was not finite know of the same one.
    bad = total.pop("bad") / jnp.maximum(total.pop("bad_devices"), 1)
    here = (collectives.index(DATA) == 0).astype(jnp.float32)
    kept = {name: here * total[name] for name in ("loss", "loss_weight")}  # read at the end of an epoch
    for name in AVERAGED:  # but keys, of which there is no mean
        kept[name] = jax.tree.map(
            lambda mine, mean: mean if is_mean(mine) else mine, getattr(state, name), total[name]
        )
    return state._replace(**total | kept, nonfinite_update=jnp.round(bad).astype(jnp.int32))
