"""The functions of an update on several devices: one all-reduce an update, none for a micro-batch.

Every device adds up the gradients of its own examples, in its own row of the totals; the sums, and what else an
update needs, travel when the update is made. The state has no rows: it lies on every device whole, or as the
params are split over further axes of the mesh, which XLA takes care of.

Which examples a device gets depends on what is trained. Where examples do not influence each other, every batch
is dealt out like cards, and the result is that of one device up to rounding; an attack that begins at random
draws other starts than on one device. Batch norm, random draws of the network, and the rules that compare
micro-batches see whole ones: of as many as there are devices, or a multiple, each device gets its own, and a
single one is split by XLA, which sums what batch norm needs over the devices and, then, the gradient as well.
Gradients are those of one device up to rounding here too. The running statistics of batch norm are the mean
over the devices, each of which has moved its own by the micro-batches that it saw in the update; one device
moves them by all, one after the other.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hessabs import collectives
from hessabs.cpu import convolutions
from hessabs.training.mesh import DATA, data_size
from hessabs.training.objectives import Share
from hessabs.training.step import Functions, Totals, TrainState, add_each


def check_model_state(model_state: Any, name: str) -> None:
    """Refuse a network whose state beside the params is no mean over devices, for it is not floating-point."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(model_state):
        if not jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 1:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"`devices` must be 1 for {name}: its {where} is no mean over devices.")


def on_mesh(
    functions: Functions,
    mesh: Mesh,
    places: TrainState,
    *,
    dealt: bool,
    micro_batch_size: int,
    one_by_one: bool,
) -> Functions:
    """Compile the functions of ``make_functions`` for several devices.

    ``places`` says where the arrays of the state lie, ``dealt`` whether the examples of a batch are dealt out,
    see ``mesh.own_rows``. The size of a micro-batch is that of all devices together; ``one_by_one``, a device
    handles its micro-batches one after the other, and else as one.
    """
    size = data_size(mesh)
    in_one = mesh.size == size  # params are whole on every device
    share_size = micro_batch_size // size if dealt else micro_batch_size
    rows = NamedSharding(mesh, P(DATA))
    # The totals have a row for each device; those of params are split as these are besides.
    scalars: Any = dict.fromkeys(("weight", "examples", "loss", "square", "parts", "bad"), rows)
    row_places = Totals(
        gradient=jax.tree.map(lambda place: NamedSharding(mesh, P(DATA, *place.spec)), places.params),
        **scalars,
        model_state=jax.tree.map(lambda _: rows, places.model_state),
        memory=jax.tree.map(lambda _: rows, places.memory),
    )

    def share() -> Share:
        index = collectives.index(DATA)
        return Share(micro_batch_size, size, index) if dealt else Share(micro_batch_size)

    def mapped(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        # check_vma=False: the gradient of replicated params must not bring a sum per micro-batch with it.
        return jax.shard_map(
            function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={DATA}, check_vma=False
        )

    def begin(state: TrainState) -> Totals:
        totals = functions.begin(state)
        return _each_array(lambda x: jnp.broadcast_to(x[None], (size, *x.shape)), totals)

    def local(state: TrainState, totals: Totals, batch: Any, fraction: Any, number: Any) -> Totals:
        # Micro-batches have the numbers that one device would count, and shares of one number of their own.
        index, count = collectives.index(DATA), batch["weight"].shape[0] // share_size
        first = number * size + index if dealt else number + index * count

        def each(state: TrainState, totals: Totals, batch: Any, fraction: Any, first: Any) -> Totals:
            here = share_size if one_by_one else None
            return add_each(functions.add, state, totals, batch, fraction, first, share(), here)

        one = _each_array(lambda x: x[0], totals)
        return _each_array(lambda x: x[None], convolutions.in_parts(each)(state, one, batch, fraction, first))

    def add_local(state: TrainState, totals: Totals, batch: Any, fraction: Any, number: Any) -> Totals:
        specs = (P(), P(DATA), P(DATA), P(), P())
        scalars = jax.tree.map(jnp.asarray, (fraction, number))
        return mapped(local, specs, P(DATA))(state, totals, batch, *scalars)

    def add_global(state: TrainState, totals: Totals, batch: Any, fraction: Any, number: Any) -> Totals:
        one = _reduce(totals, size, lambda tree: jax.tree.map(lambda x: jnp.sum(x, 0, dtype=x.dtype), tree))
        # What was added before stays where it is: only what this call adds goes to the first row.
        empty = jax.tree.map(jnp.zeros_like, one._replace(memory=()))
        empty = empty._replace(model_state=one.model_state, memory=one.memory)
        new = functions.add(state, empty, batch, fraction, number, Share(micro_batch_size))
        first = jnp.arange(size) == 0

        def put(row: jax.Array, x: jax.Array) -> jax.Array:
            return row + first.reshape(-1, *(1,) * x.ndim).astype(row.dtype) * x[None]

        sums = [each._replace(model_state=(), memory=()) for each in (totals, new)]
        model_state = jax.tree.map(lambda x: jnp.broadcast_to(x[None], (size, *x.shape)), new.model_state)
        return jax.tree.map(put, *sums)._replace(model_state=model_state, memory=new.memory)

    def add(state: TrainState, totals: Totals, batch: Any, fraction: Any, number: Any) -> Totals:
        single = not dealt and batch["weight"].shape[0] == micro_batch_size
        return (add_global if single else add_local)(state, totals, batch, fraction, number)

    def finish(state: TrainState, totals: Totals, lr_scale: Any, *clean: Any) -> TrainState:
        def total(totals: Totals) -> Totals:
            one = _each_array(lambda x: x[0], totals)
            return _reduce(one, size, _sum_of_devices if in_one else _sums_of_devices)

        memory = totals.memory
        one = mapped(total, (P(DATA),), P())(totals._replace(memory=()))
        return functions.finish(state, one._replace(memory=memory), lr_scale, *clean)

    def whole_update(state: TrainState, batch: Any, fraction: Any, lr_scale: Any, *clean: Any) -> TrainState:
        if dealt:
            return finish(state, add(state, begin(state), batch, fraction, 0), lr_scale, *clean)
        return functions.whole(state, batch, fraction, lr_scale, Share(micro_batch_size), *clean)

    return Functions(
        begin=jax.jit(begin, out_shardings=row_places),
        add=jax.jit(add, donate_argnums=1, out_shardings=row_places),
        finish=jax.jit(finish, donate_argnums=0, out_shardings=places),
        whole=jax.jit(whole_update, donate_argnums=0, out_shardings=places),
    )


def _each_array(function: Callable[[Any], Any], totals: Totals) -> Totals:
    """Change all arrays of the totals but the memory, which is split as it is."""
    return jax.tree.map(function, totals._replace(memory=()))._replace(memory=totals.memory)


def _reduce(totals: Totals, size: int, add: Callable[[Any], Any]) -> Totals:
    """Join the rows: sums of all but the state of the network, of which the mean."""
    means = jax.tree.map(lambda x: x / size if _is_mean(x) else x, totals.model_state)
    joined = add(totals._replace(model_state=means, memory=()))
    model_state = jax.tree.map(lambda x: x if _is_mean(x) else (x // size).astype(x.dtype), joined.model_state)
    return joined._replace(model_state=model_state, memory=totals.memory)


def _sum_of_devices(tree: Any) -> Any:
    """Add up over the devices, as one vector: one all-reduce on every backend."""
    kinds = jax.tree.map(lambda x: x.dtype, tree)
    vector, unravel = ravel_pytree(
        jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)
    )
    return jax.tree.map(lambda x, kind: x.astype(kind), unravel(collectives.psum(vector, DATA)), kinds)


def _sums_of_devices(tree: Any) -> Any:
    """Add up over the devices, array by array: each stays split over the other axes of the mesh."""
    return jax.tree.map(lambda x: collectives.psum(x, DATA), tree)


def _is_mean(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))
