"""One update: the gradient of a batch summed over its micro-batches, then the optax chain.

What lasts between two updates is a ``TrainState``; what belongs to one update is a ``Totals``. A batch of B
examples is B / micro_batch_size micro-batches: as many calls of ``add`` between ``begin`` and ``finish``, fewer
where a call handles several, and one call of ``whole`` where there is one. The number of calls is a number on
the host, the learning rate and the adversarial fraction are traced: growth compiles nothing but sizes that are
new. On the CPU the calls come from Python, for convolution gradients inside a loop are 20 to 50 times slower
there; on accelerators ``add`` scans over the micro-batches that fit. ``hessabs.training.across`` does the same
on several devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs import trees
from hessabs.batch_size import GradientStatistics
from hessabs.cpu import convolutions
from hessabs.jaxprs import digest, is_used
from hessabs.training.objectives import Contribution, Objective, Share
from hessabs.training.optimizers import Optimizer
from hessabs.training.task import Task
from hessabs.typing import Params

_PLAIN = Objective()
_KEYS = 2  # folded into the seed; the params take the seed itself, the first eigenvector 1


class TrainState(NamedTuple):
    """What lasts between two updates."""

    params: Params
    model_state: Any  # batch norm statistics, say; {} without any
    opt_state: optax.OptState
    average: Any  # exponential moving average of the params by examples, in at least float32; () without one
    memory: Any  # what the objective carries from micro-batch to micro-batch; () where it carries nothing
    loss: jax.Array  # shape (), float32: sum of the losses since `read_loss`, each times its weight
    loss_weight: jax.Array  # shape (), float32: weight in `loss`
    statistics: GradientStatistics  # of the last update, if asked for
    updates: jax.Array  # shape (), int32: updates made
    nonfinite_update: jax.Array  # shape (), int32: the first update with a loss that is not finite, or 0


class Totals(NamedTuple):
    """The sums of one update, over its micro-batches so far."""

    gradient: Params  # each times its weight; float32 at least
    weight: jax.Array  # shape (), float32: of the losses
    examples: jax.Array  # shape (), float32: that count
    loss: jax.Array  # shape (), float32: each times its weight
    square: jax.Array  # shape (), float32: squared norms of the gradients, if asked for
    parts: jax.Array  # shape (), int32: micro-batches
    bad: jax.Array  # shape (), float32: micro-batches with a loss that is not finite
    model_state: Any  # after the last of them
    memory: Any


class Functions(NamedTuple):
    """The functions of an update, jitted; `add` donates the totals, the last two the state."""

    begin: Callable[[TrainState], Totals]
    add: Any  # (state, totals, batch, fraction or None, number of the micro-batch) -> totals
    finish: Any  # (state, totals, lr_scale[, micro-batch, where the optimiser reads one]) -> state
    whole: Any  # (state, batch, fraction or None, lr_scale[, as above]) -> state: an update of one micro-batch

    def compilations(self) -> dict[str, int]:
        """Count how often each function has been compiled."""
        return {name: function._cache_size() for name, function in self._asdict().items()}


def init_state(task: Task, optimizer: Optimizer, key: jax.Array, memory: Any, *, average: bool) -> TrainState:
    """Draw the params and make the state before the first update; no two of its fields share a buffer."""
    params, model_state = jax.jit(task.init)(key)
    opt_state = jax.tree.map(lambda x: jnp.array(x, copy=True), optimizer.tx.init(params))
    zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
    statistics = GradientStatistics(none, none, zero, zero)
    wide = jax.tree.map(trees.upcast, params) if average else ()  # what is added would be lost in bfloat16
    state = TrainState(params, model_state, opt_state, wide, memory, zero, zero, statistics, none, none)
    return jax.tree.map(lambda x: jnp.array(x, copy=True), state)


class Reads(NamedTuple):
    """Which extra arguments of its update an optimiser reads."""

    lr_scale: bool  # it multiplies its rate by it itself
    micro_batch: bool  # it evaluates the loss, as a guarded learning rate does
    digest: str  # of the program of an update, and so of its hyperparameters


def what_reads(optimizer: Optimizer, task: Task, state: TrainState, batch: Any) -> Reads:
    """Tell which extra arguments an optimiser reads.

    ValueError: its state changes its structure, shapes or dtypes in an update.
    """

    def update(lr_scale: jax.Array, weight: jax.Array, gradient: Any, opt_state: Any, params: Params) -> Any:
        extra = {"lr_scale": lr_scale, "num_examples": jnp.ones((), jnp.int32), "value": jnp.ones(())}
        extra |= _of_loss(task, state.model_state, {**batch, "weight": weight}, jax.random.key(0))
        return optimizer.tx.update(gradient, opt_state, params, **extra)

    try:
        program, shapes = jax.make_jaxpr(update, return_shape=True)(
            jnp.ones(()), batch["weight"], state.params, state.opt_state, state.params
        )
    except TypeError as error:
        raise ValueError(
            f"`optimizer` cannot be used by fit: the update of {optimizer.name} says: {error}. It is called as "
            "update(gradient, state, params, lr_scale=, num_examples=, value=), value the mean loss, and no "
            "more is known of an update (no value_fn, grad_fn)."
        ) from error
    before = f"state of {optimizer.name}"
    trees.check_like(shapes[1], state.opt_state, f"{before} after an update", before, dtypes=True)
    return Reads(is_used(program, 0), is_used(program, 1), digest(program))


def _of_loss(task: Task, model_state: Any, batch: Any, key: jax.Array) -> dict[str, Any]:
    """Make the extra arguments of an optimiser that evaluates the training loss of a prepared micro-batch.

    Under a name of its own: what takes ``loss_fn`` and ``batch``, such as ``adversarial_gradient``, needs all
    of an update, and must not take a part of it for that.
    """

    def loss_fn(params: Params, batch: Any) -> jax.Array:
        return task.loss(params, model_state, batch, key, True).mean

    return {"micro_batch": (loss_fn, batch)}


def make_functions(
    task: Task,
    optimizer: Optimizer,
    objective: Objective,
    *,
    seed: int = 0,
    gradient_statistics: bool = False,
    scales_rate: bool = True,
    half_life: float | None = None,
    perturbs: bool = True,
    reads_micro_batch: bool = False,
) -> tuple[Functions, Callable[..., Any]]:
    """Make the functions of an update, as plain Python; ``jit_functions`` and ``across.on_mesh`` compile them.

    Args:
      task: What is learnt.
      optimizer: Its ``tx.update`` gets the extra arguments ``lr_scale``, ``num_examples`` and ``value`` (the
        mean training loss, for ``optax.contrib.reduce_on_plateau``), and where it ``reads_micro_batch`` the
        pair ``micro_batch`` of the clean training loss and the first one.
      objective: What is differentiated where a fraction is given; where it is None training is plain.
      seed: Of the random keys, one for each micro-batch.
      gradient_statistics: Whether ``state.statistics`` is to compare the micro-batches of each update.
      scales_rate: Whether the updates of the optimiser are to be multiplied by ``lr_scale`` here.
      half_life: Of the average of the params, in examples, or None.
      perturbs: Whether the objective perturbs batches in here, or ``attack`` before.

    Returns:
      ``(functions, attack)``; ``attack(state, number, batch, fraction, share)`` perturbs a prepared
      micro-batch, the ``number``-th of the update. ``add`` and ``whole`` take a ``Share`` besides, last.
    """
    root = jax.random.fold_in(jax.random.key(seed), _KEYS)

    def keys(state: TrainState, number: Any) -> jax.Array:
        return jax.random.split(jax.random.fold_in(jax.random.fold_in(root, state.updates), number))

    def attack(state: TrainState, number: Any, batch: Any, fraction: Any, share: Share) -> Any:
        assert objective.perturb is not None
        key = keys(state, number)[0]
        return objective.perturb(task, state.params, state.model_state, batch, fraction, key, share)

    def differentiate(
        state: TrainState, number: Any, model_state: Any, memory: Any, batch: Any, fraction: Any, share: Share
    ) -> Contribution:
        kind = _PLAIN if fraction is None else objective
        key = keys(state, number)[1]
        if kind.perturb is None or perturbs:  # else it is prepared already
            batch = task.prepare(batch)
        if kind.perturb is not None and perturbs:
            batch = attack(state._replace(model_state=model_state), number, batch, fraction, share)
        return kind.gradient(task, state.params, model_state, batch, key, memory)

    def begin(state: TrainState) -> Totals:
        gradient = jax.tree.map(
            lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), state.params
        )
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        # Copies: what is passed through a jitted function is the same buffer, and the totals are donated.
        kept = jax.tree.map(jnp.copy, (state.model_state, state.memory))
        return Totals(gradient, zero, zero, zero, zero, none, zero, *kept)

    def add(state: TrainState, totals: Totals, batch: Any, fraction: Any, number: Any, share: Share) -> Totals:
        examples = jnp.sum(batch["weight"])
        here = differentiate(state, number, totals.model_state, totals.memory, batch, fraction, share)
        square: Any = 0
        if gradient_statistics:  # a part of fewer examples, at the end of an epoch, cannot be compared
            square = trees.vdot(here.gradient, here.gradient)
            square = jnp.where(examples == batch["weight"].shape[0], square, jnp.nan)
        return Totals(
            gradient=jax.tree.map(lambda total, g: total + here.weight * g, totals.gradient, here.gradient),
            weight=totals.weight + here.weight,
            examples=totals.examples + examples,
            loss=totals.loss + here.weight * here.loss,
            square=totals.square + square,
            parts=totals.parts + 1,
            bad=totals.bad + ~jnp.isfinite(here.loss),
            model_state=here.model_state,
            memory=here.memory,
        )

    def descend(
        state: TrainState, totals: Totals, gradient: Params, lr_scale: Any, batch: Any = None
    ) -> TrainState:
        value = totals.loss * trees.safe_inverse(totals.weight)
        extra = {"lr_scale": lr_scale, "num_examples": totals.examples.astype(jnp.int32), "value": value}
        if reads_micro_batch:
            extra |= _of_loss(task, state.model_state, task.prepare(batch), keys(state, 0)[1])
        updates, opt_state = optimizer.tx.update(gradient, state.opt_state, state.params, **extra)
        if scales_rate:
            updates = jax.tree.map(lambda u: (lr_scale * u).astype(u.dtype), updates)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if half_life is not None:
            kept = jnp.exp2(-totals.examples / half_life)
            average = jax.tree.map(lambda a, p: (p + kept * (a - p)).astype(a.dtype), average, params)
        bad = (totals.bad > 0) & (state.nonfinite_update == 0)
        return state._replace(
            params=params,
            model_state=totals.model_state,
            opt_state=opt_state,
            average=average,
            memory=totals.memory,
            loss=state.loss + totals.loss,
            loss_weight=state.loss_weight + totals.weight,
            updates=state.updates + 1,
            nonfinite_update=jnp.where(bad, state.updates + 1, state.nonfinite_update),
        )

    def finish(state: TrainState, totals: Totals, lr_scale: Any, batch: Any = None) -> TrainState:
        def mean(total: jax.Array, param: jax.Array) -> jax.Array:
            return (total * trees.safe_inverse(totals.weight.astype(total.dtype))).astype(param.dtype)

        gradient = jax.tree.map(mean, totals.gradient, state.params)
        if gradient_statistics:
            parts = totals.parts.astype(jnp.float32)
            statistics = GradientStatistics(
                part_size=jnp.round(totals.examples / parts).astype(jnp.int32),
                num_parts=totals.parts,
                mean_square=totals.square / parts,
                square_mean=trees.vdot(gradient, gradient).astype(jnp.float32),
            )
            state = state._replace(statistics=statistics)
        return descend(state, totals, gradient, lr_scale, batch)

    def whole(
        state: TrainState, batch: Any, fraction: Any, lr_scale: Any, share: Share, clean: Any = None
    ) -> TrainState:
        examples = jnp.sum(batch["weight"])
        here = differentiate(state, 0, state.model_state, state.memory, batch, fraction, share)
        bad = (~jnp.isfinite(here.loss)).astype(jnp.float32)
        loss, zero, one = here.weight * here.loss, jnp.zeros(()), jnp.ones((), jnp.int32)
        totals = Totals((), here.weight, examples, loss, zero, one, bad, here.model_state, here.memory)
        return descend(state, totals, here.gradient, lr_scale, batch if clean is None else clean)

    return Functions(begin, add, finish, whole), attack


def jit_functions(functions: Functions, micro_batch_size: int, *, one_by_one: bool) -> Functions:
    """Compile the functions of an update for one device; ``one_by_one``, several micro-batches in one call are
    handled one after the other (ghost batch norm), by a compiled loop, and else as one.
    """
    share = Share(micro_batch_size)
    size = micro_batch_size if one_by_one else None

    def add(state: TrainState, totals: Totals, batch: Any, fraction: Any, number: Any) -> Totals:
        return add_each(functions.add, state, totals, batch, fraction, number, share, size)

    def whole(state: TrainState, batch: Any, fraction: Any, lr_scale: Any, *clean: Any) -> TrainState:
        return functions.whole(state, batch, fraction, lr_scale, share, *clean)

    return Functions(
        begin=jax.jit(functions.begin),
        add=jax.jit(convolutions.in_parts(add), donate_argnums=1),
        finish=jax.jit(convolutions.in_parts(functions.finish), donate_argnums=0),
        whole=jax.jit(convolutions.in_parts(whole), donate_argnums=0),
    )


def add_each(
    add: Callable[..., Totals],
    state: TrainState,
    totals: Totals,
    batch: Any,
    fraction: Any,
    first: Any,
    share: Share,
    size: int | None,
) -> Totals:
    """Add the micro-batches of ``size`` examples in a batch one after the other; with None, add it as one."""
    count = 1 if size is None else batch["weight"].shape[0] // size
    if count == 1:
        return add(state, totals, batch, fraction, first, share)
    cut = jax.tree.map(lambda x: x.reshape(count, size, *x.shape[1:]), batch)

    def one(totals: Totals, part: tuple[jax.Array, Any]) -> tuple[Totals, None]:
        number, batch = part
        return add(state, totals, batch, fraction, number, share), None

    return jax.lax.scan(one, totals, (first + jnp.arange(count), cut))[0]


def averaged(state: TrainState) -> Params:
    """Return the average of the params, in their dtypes."""
    return jax.tree.map(lambda a, p: a.astype(p.dtype), state.average, state.params)


def mean_loss(state: TrainState) -> float:
    """Read the mean training loss since the last ``read_loss``; nan if there was no example."""
    loss, weight = (float(x) for x in jax.device_get((state.loss, state.loss_weight)))
    return loss / weight if weight else float("nan")


def read_loss(state: TrainState) -> tuple[float, TrainState]:
    """Read the mean training loss since the last call, and start anew."""
    zero = jnp.zeros_like(state.loss)
    return mean_loss(state), state._replace(loss=zero, loss_weight=jnp.zeros_like(state.loss_weight))
