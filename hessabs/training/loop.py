"""``fit``: the only place that owns the order of things."""

import functools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import compiling, curvature
from hessabs.batch_size import Controller, ControllerState, Count, Observation
from hessabs.data import Position, Reader
from hessabs.training import files, processes
from hessabs.training.callbacks import Callback
from hessabs.training.clock import Clock
from hessabs.training.durability import Durability
from hessabs.training.finite import NonFiniteError, check_loss, check_params
from hessabs.training.loop_state import Decision, LoopState, Snapshot, learning_rate, rate_factor
from hessabs.training.mesh import first_micro_batch, split, wait_for
from hessabs.training.objectives import Objective
from hessabs.training.progress import Progress
from hessabs.training.records import end_epoch, evaluate_all, evaluated, said, show, summarize
from hessabs.training.run import DEFAULTS, PLAIN, Remainder, Run, Schedule, prepare
from hessabs.training.session import Session
from hessabs.training.settings import RunSettings
from hessabs.training.sizes import Sizes, make_sizes
from hessabs.training.step import averaged
from hessabs.training.task import Task
from hessabs.typing import Params

_SECONDS_BETWEEN_CHECKS = 0.5


class Result(NamedTuple):
    """What a finished run leaves."""

    params: Params
    model_state: Any  # batch norm statistics, say; {} without any
    average: Params | None  # of the params, with ``RunSettings.ema``
    average_state: Any  # the model state at the average; None without one
    summary: dict[str, Any]  # the fields of summary.json
    records: list[dict[str, Any]]  # the lines of metrics.jsonl


def fit(
    task: Task,
    optimizer: Any,
    rule: Controller,
    *,
    epochs: int,
    micro_batch_size: int | None = None,
    remainder: Remainder = "drop",
    objective: Objective = PLAIN,
    schedule: Schedule | None = None,
    settings: RunSettings = DEFAULTS,
    workdir: str | pathlib.Path | None = None,
    durability: Durability | None = None,
    callbacks: Sequence[Callback] = (),
    record: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Result:
    """Train.

    The update is the unit: ``for batch in updates: state = step(state, batch, decision)``. A decision of the
    rule is taken between two updates and holds for a whole one; the rule sees its measurements there. Updates
    run on across the ends of epochs; what fills no update at the end of the training is not trained on (so the
    counts of updates are the paper's). The order of the data is a function of seed and position, so a run that
    was killed goes on to the same bits, on the same devices. Several processes all call this alike.

    Args:
      task: What is learnt, see ``hessabs.training.tasks``.
      optimizer: Any optax transformation, whose updates are multiplied by the factor of rule and schedule
        unless it takes the extra argument ``lr_scale`` itself; it gets ``num_examples`` and ``value``, the mean
        training loss, too. (What has to come after that factor, ``optax.keep_params_nonnegative`` say, does in
        ``optax.chain(sgd, hessabs.scale_by_batch_size(), keep_params_nonnegative)``. One that evaluates the
        loss itself, ``optax.lbfgs`` or ``contrib.sam``, is refused; ``optax.MultiSteps`` is not needed.) Or
        what ``make_optimizer`` returns. (The ``lr`` of records is that of the latter, and for a chain of your
        own the factor on its rate.)
      rule: How large the next batch is, of ``hessabs.batch_size``.
      epochs: Passes over the training data, at least 1.
      micro_batch_size: Examples that are handled at once, a divisor of the smallest batch (batch norm sees
        these); None for that batch, or 128 where that divides it.
      remainder: Whether an epoch's incomplete last micro-batch is left out (``"drop"``, as in the paper) or
        trained on too, with exact weights (``"keep"``).
      objective: Robust training, of ``hessabs.training.objectives``.
      schedule: ``schedule(examples so far) -> factor`` of the learning rate, as ``make_schedule`` makes it, or
        None for 1. A schedule of optax will do, counted in examples and not in updates.
      settings: How the run is made besides.
      workdir: Folder for ``metrics.jsonl``, ``summary.json``, ``curves.png`` and the trained params, locked
        against other runs; None writes nothing. Of several processes the first alone uses it.
      durability: How the run is saved in ``workdir``, and whether it goes on from what was saved there; None
        saves nothing on the way.
      callbacks: Called with every epoch's record and every decision, see ``hessabs.training.callbacks``.
      record: What made the parts, for the folder: a run goes on only where it is the same. JSON holds it.
      overwrite: Whether a run that ``workdir`` holds may be lost, where this one does not go on with it.

    Returns:
      A ``Result``. Where a run in ``workdir`` that is to go on has finished, what it left.

    Raises:
      FloatingPointError: If the loss is not finite, naming the update. What was written stays.
      BlockingIOError: If another process runs in ``workdir``.
      FileExistsError: If ``workdir`` holds a run, and is neither to be overwritten nor to be gone on with.
      CallbackError: If a callback raised; the run was saved first.
      ValueError: If the parts do not fit each other, or what was saved in ``workdir`` is another run, or
        damaged beyond use.
      Interrupted: After SIGTERM or Ctrl-C, with ``durability`` only, when the run is saved.

    Example:
      >>> import optax
      >>> from hessabs import batch_size, data, models, training
      >>> task = training.tasks.linen(models.mlp(10, (16,)), data.load("digits"))
      >>> result = training.fit(task, optax.adam(1e-3), batch_size.constant(64), epochs=1)
      >>> result.summary["updates"], result.records[0]["batch_size"]
      (22, 64)
    """
    if durability is not None and not isinstance(durability, Durability):
        raise ValueError(f"`durability` must be a Durability, Durability(resume=True) say, got {durability!r}.")
    if durability is not None and workdir is None:
        raise ValueError("`durability` needs a `workdir`, the folder that the run is saved in; got none.")
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ValueError(
            f"`callbacks` must be a list of functions of (event, record), got {callbacks!r}; "
            "hessabs.training.callbacks.make_callbacks makes those of a name."
        )
    run = prepare(
        task,
        optimizer,
        rule,
        epochs=epochs,
        micro_batch_size=micro_batch_size,
        remainder=remainder,
        objective=objective,
        schedule=schedule,
        settings=settings,
        record=record,
    )
    if workdir is None:
        return train(run, None, durability, callbacks)
    folder, goes_on = pathlib.Path(workdir), durability is not None and durability.resume
    processes.on_first(lambda: files.check_workdir(folder, overwrite=overwrite or goes_on))
    return train(run, folder, durability, callbacks)


def train(
    run: Run,
    workdir: pathlib.Path | None = None,
    durability: Durability | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train what ``prepare`` made; its state is used up."""
    with Session(run, workdir, durability, callbacks) as session:
        left = session.finished()
        if left is not None:
            return _result(*left)
        snapshot = session.begin()
        while True:
            try:
                state, records = _train(run, session, snapshot)
                break
            except NonFiniteError as error:
                snapshot = session.rewind(error)
        compiled = compiling.seconds()
        last = evaluated(run, state.train)
        final = run.measure_final(last.params, last.model_state, state.eigenvector)
        compiled = compiling.seconds() - compiled + sum(line.get("seconds_compile", 0.0) for line in records)
        results = evaluate_all(run.final, last.params, last.model_state)
        summary = summarize(run, last, records, results, final, session.seconds(), compiled)
        network = {"params": last.params, "model_state": last.model_state}
        if run.settings.ema is not None:
            average = averaged(last)
            network |= {"average": average, "average_state": run.refresh(average, last.model_state)}
        session.finish(network, records, summary)
    return _result(network, summary, records)


def _result(network: dict[str, Any], summary: dict[str, Any], records: list[dict[str, Any]]) -> Result:
    return Result(**{"average": None, "average_state": None, **network}, summary=summary, records=records)


def _train(run: Run, session: Session, snapshot: Snapshot) -> tuple[LoopState, list[dict[str, Any]]]:
    state, records = snapshot.state, list(snapshot.records)
    read = run.read_from(state.position)
    update_rule = jax.jit(run.rule.update)
    clock, checked = Clock(snapshot.clock), time.perf_counter()
    # Several processes have clocks of their own, and what is shown all of them compute together.
    is_single, total = jax.process_count() == 1, run.epochs * run.epoch_examples
    session.tell("start", {"records": records, "samples": state.samples})
    with (
        Progress(total, state.samples, logs=processes.is_first()) as progress,
        make_sizes(run, state.train) as sizes,
    ):
        # Where a callback broke the run off, at the end of an epoch, what follows that is still to do.
        state = _end_epochs(run, state, session, records, clock, progress)
        measured = (records[-1]["eigenvalue"], records[-1]["residual"]) if records else state.measured
        state = _decide(run, state, session, measured)
        while _micro_batches_left(run, state) >= run.micro_batches(state.decision.batch_size):
            if state.drops and state.updates + 1 >= state.drops[0].update:
                check_loss(run, state)
                state = _drop(run, state, read)
            else:
                state = _update(run, state, read, sizes, clock)
            observes = state.samples >= int(state.controller.observe_at)
            if observes:
                state = _observe(run, state, update_rule, clock)
            measured = state.measured  # the end of an epoch forgets it
            if is_single and time.perf_counter() - checked > _SECONDS_BETWEEN_CHECKS:
                show(run, state, progress)
                session.check()
                checked = time.perf_counter()
            state = _end_epochs(run, state, session, records, clock, progress)
            if observes:
                state = _decide(run, state, session, measured)
            session.between_updates(state, records, clock)
        check_loss(run, state)
        # What is left fills no update; a run of more epochs goes on with it.
        saved = Snapshot(state, list(records), clock.save())
        state = state._replace(position=Position(run.epochs, 0), samples=total)
        if len(records) < run.epochs and total >= int(state.controller.observe_at):
            state = _observe(run, state, update_rule, clock)
        state = _end_epochs(run, state, session, records, clock, progress, saved)
    check_params(state)
    session.trained(saved)
    return state, records


def _decide(run: Run, state: LoopState, session: Session, measured: tuple[float, float]) -> LoopState:
    decision = Decision.of(run.objective, state.controller)
    if decision != state.decision:
        check_loss(run, state)
        state = state._replace(decision=decision)
        lr = learning_rate(run, rate_factor(run, state.decision, state.samples))
        session.tell("decision", {**said(state, lr), "eigenvalue": measured[0], "residual": measured[1]})
    return state


def _micro_batches_left(run: Run, state: LoopState) -> int:
    return (run.epochs - state.position.epoch) * run.epoch_micro_batches - state.position.index


def _update(run: Run, state: LoopState, read: Reader, sizes: Sizes, clock: Clock) -> LoopState:
    """Make one update: read its micro-batches, add their gradients up, descend."""
    functions, train, position, samples = run.functions, state.train, state.position, state.samples
    fraction = state.decision.adversarial_fraction or None
    wanted, done = run.micro_batches(state.decision.batch_size), 0
    factor = rate_factor(run, state.decision, samples)
    lr_scale = _on_device(factor)
    totals = None
    shown: tuple[Any, ...] = ()  # a micro-batch, for an optimiser that reads one
    if wanted > 1:
        sizes.prepare(_largest_next(run, state.decision.batch_size))
        totals = functions.begin(train)
    while done < wanted:
        left, here_fraction = run.epoch_micro_batches - position.index, fraction
        if fraction is not None and run.mixes_short:  # it is a part of the examples that there are
            left = max(left - 1, 1)
            here_fraction = fraction * (run.examples(position, 1) / run.micro_batch_size)
        count = sizes.choose(min(wanted - done, left))
        with clock.measure("data"):
            batch, after = read(count)
            batch = split(batch, run.mesh)
        if run.reads_micro_batch and not shown:
            shown = (first_micro_batch(batch, run.micro_batch_size, run.mesh, dealt=run.dealt),)
        if fraction is not None and run.perturb is not None:
            here = train if totals is None else train._replace(model_state=totals.model_state)
            batch = run.perturb(here, done, batch, here_fraction)
        if totals is None:
            train = functions.whole(train, batch, here_fraction, lr_scale, *shown)
            wait_for(train, run.mesh)
        else:
            totals = functions.add(train, totals, batch, here_fraction, done)
            wait_for(totals, run.mesh)
        samples, position, done = samples + run.examples(position, count), after, done + count
    if totals is not None:
        train = functions.finish(train, totals, lr_scale, *shown)
        wait_for(train, run.mesh)
    lr = learning_rate(run, factor)
    return state._replace(train=train, lr=lr, updates=state.updates + 1, samples=samples, position=position)


def _drop(run: Run, state: LoopState, read: Reader) -> LoopState:
    """Pass over batches that are to be dropped; their examples count, for rules and epochs go by them."""
    drop, *later = state.drops
    position, samples = state.position, state.samples
    wanted = drop.batches * run.micro_batches(state.decision.batch_size)
    for _ in range(min(_micro_batches_left(run, state), wanted)):
        samples += run.examples(position, 1)
        _, position = read(1)
    return state._replace(drops=tuple(later), samples=samples, position=position)


@functools.lru_cache(4)
def _on_device(lr_scale: float) -> jax.Array:
    return jnp.float32(lr_scale)  # one copy as long as the rate stays


def _largest_next(run: Run, batch_size: int) -> int:
    # Twice as much, or as many as the rule may say: compiled while this size is in use.
    maximum = batch_size if run.rule.batch_sizes is None else run.rule.batch_sizes[1]
    return run.micro_batches(min(max(batch_size, maximum), 2 * batch_size))


def _observe(run: Run, state: LoopState, update_rule: Any, clock: Clock) -> LoopState:
    factor = np.float32(run.schedule(state.samples))
    observation = Observation(Count.of(state.samples), lr_scale=factor)
    if run.rule.measures in ("eigenvalue", "last_layer_eigenvalue"):
        if state.controller.measure:
            state = _measure(run, state, clock)
        eigenvalue = state.measured[0] if state.controller.measure else float("nan")
        observation = observation._replace(eigenvalue=eigenvalue)
    elif run.rule.measures == "gradient":
        observation = observation._replace(gradient=jax.device_get(state.train.statistics))
    controller: ControllerState = jax.device_get(update_rule(observation, state.controller))
    processes.agree("the batch-size rule", (state.samples, controller))
    return state._replace(controller=controller)


def _measure(run: Run, state: LoopState, clock: Clock) -> LoopState:
    jax.block_until_ready(state.train)
    block = None
    if run.rule.measures == "last_layer_eigenvalue":
        block = curvature.last_layer_path(state.train.params, run.task.num_classes)
    with clock.measure("hessian"):
        seen = evaluated(run, state.train)
        result = run.measure(seen.params, seen.model_state, state.eigenvector, block)
        eigenvalue, residual = (float(x) for x in jax.device_get((result.eigenvalue, result.residual)))
    # A vector that is not finite would spoil every later measurement.
    eigenvector = result.eigenvector if np.isfinite(residual) else state.eigenvector
    return state._replace(eigenvector=eigenvector, measured=(eigenvalue, residual), last_eigenvalue=eigenvalue)


def _end_epochs(
    run: Run,
    state: LoopState,
    session: Session,
    records: list[dict[str, Any]],
    clock: Clock,
    progress: Progress,
    saved: Snapshot | None = None,  # where a run goes on that a callback breaks off; None: here
) -> LoopState:
    while len(records) < state.position.epoch:
        record, state = end_epoch(run, state, len(records) + 1, clock)
        records.append(record)
        session.append(record)
        show(run, state, progress, record)
        session.tell("epoch", record, saved or Snapshot(state, records, clock.save()))
    return state
