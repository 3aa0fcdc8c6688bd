"""The training loop: the only place that owns the order of things."""

import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs import compiling
from hessabs.batch_size import ControllerState, Count, Observation
from hessabs.curvature import PowerIterationResult
from hessabs.training.clock import Clock
from hessabs.training.devices import processes
from hessabs.training.devices.mesh import keep_up, split
from hessabs.training.devices.micro_batch import AtOnce, make_at_once
from hessabs.training.feed import make_reader
from hessabs.training.finite import NonFiniteError, check_loss, check_params, learning_rate
from hessabs.training.loop_state import LoopState, begin_drop, decide
from hessabs.training.progress import Progress
from hessabs.training.saving.durability import Durability
from hessabs.training.saving.session import Session
from hessabs.training.saving.snapshot import Snapshot
from hessabs.training.setup import Run
from hessabs.training.state import mean_loss, read_loss
from hessabs.training.summary import summarize
from hessabs.typing import Params

_SECONDS_BETWEEN_CHECKS = 0.5


class Result(NamedTuple):
    """What a finished run leaves."""

    params: Params
    model_state: Any  # collections of flax beside the params
    summary: dict[str, Any]  # the fields of summary.json
    records: list[dict[str, Any]]  # the lines of metrics.jsonl


def train(run: Run, workdir: pathlib.Path | None = None, durability: Durability | None = None) -> Result:
    """Train a network.

    A batch of B examples is accumulated from B / micro_batch_size micro-batches. The controller's decision is
    taken up when an update is complete and holds until the next one is: no update mixes two batch sizes.
    Accumulation runs on across the ends of epochs; what is left of it at the end of the training makes no
    update (so the counts of updates are the paper's). Several processes all call this with the same arguments.

    Args:
      run: What ``set_up`` made. Its state is used up.
      workdir: Folder for ``metrics.jsonl``, ``summary.json``, ``curves.png`` and the trained params, locked
        against other runs; None writes nothing. Of several processes the first alone uses it.
      durability: How the run is saved in ``workdir``, and whether it goes on from what was saved there; None
        saves nothing on the way.

    Returns:
      A ``Result``: trained params, summary, records. Where a run in ``workdir`` that is to go on has finished,
      what it left.

    Raises:
      FloatingPointError: If the loss is not finite, naming the update. What was written stays.
      BlockingIOError: If another process runs in ``workdir``.
      ValueError: If what was saved in ``workdir`` is another run, or damaged beyond use.
      Interrupted: After SIGTERM or Ctrl-C, with ``durability`` alone, when the run is saved.
    """
    with Session(run, workdir, durability) as session:
        left = session.finished()
        if left is not None:
            return Result(*left)
        snapshot = session.begin()
        while True:
            try:
                state, records = _train(run, session, snapshot)
                break
            except NonFiniteError as error:
                snapshot = session.rewind(error)
        compiled = compiling.seconds()
        last = run.view(state.train)
        final = run.measure_final(last, state.eigenvector)
        compiled = compiling.seconds() - compiled + sum(line.get("seconds_compile", 0.0) for line in records)
        summary = summarize(run, last, records, final, session.seconds(), compiled)
        session.finish(last, records, summary)
    return Result(last.params, last.model_state, summary, records)


def _train(run: Run, session: Session, snapshot: Snapshot) -> tuple[LoopState, list[dict[str, Any]]]:
    config, state, records = run.config, snapshot.state, list(snapshot.records)
    read = make_reader(run, state.position)
    update_controller = jax.jit(run.controller.update)
    clock, checked = Clock(snapshot.clock), time.perf_counter()
    total = config.epochs * run.epoch_examples
    with (
        Progress(total, state.samples, logs=processes.is_first()) as progress,
        make_at_once(run, state.train) as at_once,
    ):
        while state.position.epoch < config.epochs:
            state = begin_drop(run, state)
            count = _take_at_once(run, state, at_once)
            with clock.measure("data"):
                batch, position = read(count)
                batch = split(batch, run.mesh)
            state = (_drop if state.dropping else _train_on)(run, state, batch, count)
            keep_up(state.train, run.mesh)
            state = state._replace(position=position)
            if state.samples >= int(state.controller.observe_at):
                state = _observe(run, state, update_controller, clock)
            # Several processes have clocks of their own, and what is shown all of them compute together.
            if jax.process_count() == 1 and time.perf_counter() - checked > _SECONDS_BETWEEN_CHECKS:
                _show(run, state, progress)
                session.check()
                checked = time.perf_counter()
            if position.index == 0:
                record, state = _end_epoch(run, state, clock)
                records.append(record)
                session.append(record)
                _show(run, state, progress, record)
            if state.accumulated == 0:
                state = state._replace(decision=decide(run, state.controller))
            session.between_steps(Snapshot(state, records, clock.save()))
    check_params(state)
    session.trained(Snapshot(state, records, clock.save()))
    return state, records


def _take_at_once(run: Run, state: LoopState, at_once: AtOnce) -> int:
    if state.dropping:
        return 1
    # Never beyond the update, the epoch, or the next measurement: what a rule decides does not depend on it.
    size, batch_size = run.micro_batch_size, state.decision.batch_size
    most = -(-batch_size // size) - state.accumulated
    if run.controller.measures != "nothing":
        most = min(most, max(1, -(-(int(state.controller.observe_at) - state.samples) // size)))
    if state.accumulated == 0:
        at_once.prepare(run.largest_next(batch_size) // size)
    return at_once.choose(min(most, run.epoch_micro_batches - state.position.index))


def _train_on(run: Run, state: LoopState, batch: dict[str, Any], count: int) -> LoopState:
    functions, train_state = run.functions, state.train
    batch_size, lr_scale, fraction = state.decision
    accumulated = state.accumulated + count
    if fraction > 0:
        batch = functions.perturb(train_state, batch, fraction)
    if batch_size == run.micro_batch_size:
        accumulated = 0
        if fraction > 0:
            train_state = functions.update_adversarial(train_state, batch, fraction, lr_scale)
        else:
            train_state = functions.update(train_state, batch, lr_scale)
    else:
        if fraction > 0:
            train_state = functions.accumulate_adversarial(train_state, batch, fraction)
        else:
            train_state = functions.accumulate(train_state, batch)
        if accumulated * run.micro_batch_size >= batch_size:
            train_state = functions.apply_update(train_state, lr_scale)
            accumulated = 0
    return state._replace(
        train=train_state,
        accumulated=accumulated,
        updates=state.updates + (accumulated == 0),
        samples=state.samples + _num_examples(run, state, count),
    )


def _drop(run: Run, state: LoopState, batch: dict[str, Any], count: int) -> LoopState:
    # Its examples count: the rules go by examples, and the epochs would drift away from them.
    del batch
    return state._replace(
        dropping=state.dropping - count, samples=state.samples + _num_examples(run, state, count)
    )


def _num_examples(run: Run, state: LoopState, count: int) -> int:
    # The last micro-batch of an epoch may be filled up with examples that do not count.
    left = run.epoch_examples - state.position.index * run.micro_batch_size
    return min(count * run.micro_batch_size, left)


def _observe(
    run: Run,
    state: LoopState,
    update_controller: Callable[[Observation, ControllerState], ControllerState],
    clock: Clock,
) -> LoopState:
    observation = Observation(Count.of(state.samples))
    if run.controller.measures in ("eigenvalue", "last_layer_eigenvalue"):
        eigenvalue = float("nan")
        if state.controller.measure:
            state, eigenvalue = _measure(run, state, clock)
        observation = observation._replace(eigenvalue=eigenvalue)
    elif run.controller.measures == "gradient":
        observation = observation._replace(gradient=jax.device_get(state.train.statistics))
    controller = jax.device_get(update_controller(observation, state.controller))
    processes.agree("the batch-size rule", (state.samples, controller))
    return state._replace(controller=controller)


def _measure(run: Run, state: LoopState, clock: Clock) -> tuple[LoopState, float]:
    jax.block_until_ready(state.train)
    measure = run.measure if run.controller.measures == "eigenvalue" else run.measure_last_layer
    with clock.measure("hessian"):
        result: PowerIterationResult = measure(run.view(state.train), state.eigenvector)
        eigenvalue, residual = (float(x) for x in jax.device_get((result.eigenvalue, result.residual)))
    # A vector that is not finite would spoil every later measurement.
    eigenvector = result.eigenvector if np.isfinite(residual) else state.eigenvector
    measured = (eigenvalue, residual)
    return state._replace(eigenvector=eigenvector, measured=measured, last_eigenvalue=eigenvalue), eigenvalue


def _end_epoch(run: Run, state: LoopState, clock: Clock) -> tuple[dict[str, Any], LoopState]:
    check_loss(run, state)
    loss, train_state = read_loss(state.train)
    jax.block_until_ready(train_state)
    view = run.view(train_state)
    with clock.measure("eval"):
        accuracy = run.accuracy(view)
    tracked: dict[str, float] = {}
    if run.config.track:
        with clock.measure("hessian"):
            tracked = run.track(view, state.eigenvector)
    seconds = clock.end_epoch()
    decision = state.decision
    record = {
        "epoch": state.position.epoch,
        "updates": int(train_state.updates),
        "samples": state.samples,
        "batch_size": decision.batch_size,
        "lr": learning_rate(run, decision),
        "adversarial_fraction": decision.adversarial_fraction,
        "train_loss": loss,
        "test_accuracy": accuracy,
        "eigenvalue": state.measured[0],
        "residual": state.measured[1],
        **tracked,
        **{f"seconds_{name}": value for name, value in seconds.items()},
    }
    return record, state._replace(train=train_state, measured=(float("nan"), float("nan")))


def _show(run: Run, state: LoopState, progress: Progress, ended: dict[str, Any] | None = None) -> None:
    check_loss(run, state)
    loss = mean_loss(state.train) if ended is None else ended["train_loss"]
    accuracy = {} if ended is None else {"test": f"{ended['test_accuracy']:.2f}%"}
    progress.show(
        state.samples,
        milestone=ended is not None,
        epoch=f"{state.position.epoch}/{run.config.epochs}",
        loss=loss if loss == loss else None,
        **accuracy,
        batch=state.decision.batch_size,
        lr=learning_rate(run, state.decision),
        eigenvalue=state.last_eigenvalue,
        updates=int(state.train.updates),
    )
