"""The training loop: the only place that owns the order of things."""

import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hessabs.batch_size import ControllerState, Observation
from hessabs.curvature import PowerIterationResult
from hessabs.data import Position, reader
from hessabs.training import checkpoint, metrics
from hessabs.training.clock import Clock
from hessabs.training.curves import draw_curves
from hessabs.training.micro_batch import AtOnce, make_at_once
from hessabs.training.progress import Progress
from hessabs.training.setup import Run
from hessabs.training.state import TrainState, read_loss
from hessabs.training.summary import summarize
from hessabs.typing import Params

_SECONDS_BETWEEN_CHECKS = 0.5


class Decision(NamedTuple):
    """What a controller decided, as numbers of the host; it holds for a whole update."""

    batch_size: int
    lr_scale: float
    adversarial_fraction: float


class LoopState(NamedTuple):
    """All that the rest of a run depends on."""

    train: TrainState
    controller: ControllerState  # on the host
    decision: Decision  # of the update that is being accumulated
    accumulated: int  # micro-batches in train.gradient
    samples: int  # examples trained on
    position: Position  # of the stream
    eigenvector: Params  # of the last measurement, where the next one starts
    measured: tuple[float, float]  # (eigenvalue, residual) last measured in this epoch, else nan
    last_eigenvalue: float | None  # of the last measurement, for the progress bar


class Result(NamedTuple):
    """What a finished run leaves."""

    params: Params
    model_state: Any  # collections of flax beside the params
    summary: dict[str, Any]  # the fields of summary.json
    records: list[dict[str, Any]]  # the lines of metrics.jsonl


def train(run: Run, workdir: pathlib.Path | None = None) -> Result:
    """Train a network.

    A batch of B examples is accumulated from B / micro_batch_size micro-batches. The controller's decision is
    taken up when an update is complete and holds until the next one is: no update mixes two batch sizes.
    Accumulation runs on across the ends of epochs; what is left of it at the end of the training makes no
    update (so the counts of updates are the paper's).

    Args:
      run: What ``set_up`` made. Its state is used up.
      workdir: Folder for ``metrics.jsonl``, ``summary.json``, ``curves.png`` and the trained params;
        None writes nothing.

    Returns:
      A ``Result``: trained params, summary, records.

    Raises:
      FloatingPointError: If the loss is not finite, naming the update. What was written stays.
    """
    started = time.perf_counter()
    if workdir is not None:
        metrics.start_workdir(workdir)
    config = run.config
    state = start(run)
    read = reader(
        run.dataset.train,
        run.micro_batch_size,
        seed=config.seed,
        position=state.position,
        keep_remainder=config.keep_remainder,
    )
    update_controller = jax.jit(run.controller.update)
    records: list[dict[str, Any]] = []
    clock, checked = Clock(), time.perf_counter()
    with Progress(config.epochs * run.epoch_examples) as progress, make_at_once(run, state.train) as at_once:
        while state.position.epoch < config.epochs:
            count = _take_at_once(run, state, at_once)
            with clock.measure("data"):
                batch, position = read(count)
            state = _train_on(run, state, batch)._replace(position=position)
            if state.samples >= state.controller.observe_at:
                state = _observe(run, state, update_controller, clock)
            if time.perf_counter() - checked > _SECONDS_BETWEEN_CHECKS:
                _show(run, state, progress)
                checked = time.perf_counter()
            if position.index == 0:
                record, state = _end_epoch(run, state, clock)
                records.append(record)
                if workdir is not None:
                    metrics.append_line(workdir / metrics.METRICS, record)
                _show(run, state, progress)
            if state.accumulated == 0:
                state = state._replace(decision=_decide(state.controller))
    if not jnp.isfinite(optax.tree.norm(state.train.params)):
        raise FloatingPointError(
            f"The params are not finite after the last update, {int(state.train.updates)}; lower --lr."
        )
    final = run.measure_final(state.train, state.eigenvector)
    summary = summarize(run, state.train, records, final, time.perf_counter() - started)
    if workdir is not None:
        checkpoint.save_params(workdir, state.train.params, state.train.model_state)
        draw_curves(workdir / metrics.CURVES, {config.method: records})
        metrics.write_json(workdir / metrics.SUMMARY, summary)
    return Result(state.train.params, state.train.model_state, summary, records)


def start(run: Run) -> LoopState:
    """Make the state of a run before its first micro-batch.

    Args:
      run: What ``set_up`` made.

    Returns:
      A ``LoopState``.
    """
    key = jax.random.fold_in(jax.random.key(run.config.seed), 1)
    controller = jax.device_get(run.controller.init())
    return LoopState(
        train=run.state,
        controller=controller,
        decision=_decide(controller),
        accumulated=0,
        samples=0,
        position=Position(0, 0),
        eigenvector=optax.tree.random_like(key, run.state.params, jax.random.normal),
        measured=(float("nan"), float("nan")),
        last_eigenvalue=None,
    )


def _take_at_once(run: Run, state: LoopState, at_once: AtOnce) -> int:
    # Never beyond the update, the epoch, or the next measurement: what a rule decides does not depend on it.
    size, batch_size = run.micro_batch_size, state.decision.batch_size
    most = -(-batch_size // size) - state.accumulated
    if run.controller.measures != "nothing":
        most = min(most, max(1, -(-(int(state.controller.observe_at) - state.samples) // size)))
    if state.accumulated == 0:
        at_once.prepare(run.largest_next(batch_size) // size)
    return at_once.choose(min(most, run.epoch_micro_batches - state.position.index))


def _train_on(run: Run, state: LoopState, batch: dict[str, np.ndarray]) -> LoopState:
    functions, train_state = run.functions, state.train
    batch_size, lr_scale, fraction = state.decision
    num_examples = len(batch["weight"])
    accumulated = state.accumulated + num_examples // run.micro_batch_size
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
    if run.config.keep_remainder:
        num_examples = int(batch["weight"].sum())
    return state._replace(train=train_state, accumulated=accumulated, samples=state.samples + num_examples)


def _observe(
    run: Run,
    state: LoopState,
    update_controller: Callable[[Observation, ControllerState], ControllerState],
    clock: Clock,
) -> LoopState:
    observation = Observation(state.samples)
    if run.controller.measures == "eigenvalue":
        eigenvalue = float("nan")
        if state.controller.measure:
            state, eigenvalue = _measure(run, state, clock)
        observation = observation._replace(eigenvalue=eigenvalue)
    elif run.controller.measures == "gradient":
        observation = observation._replace(gradient=jax.device_get(state.train.statistics))
    controller = jax.device_get(update_controller(observation, state.controller))
    return state._replace(controller=controller)


def _measure(run: Run, state: LoopState, clock: Clock) -> tuple[LoopState, float]:
    jax.block_until_ready(state.train)
    with clock.measure("hessian"):
        result: PowerIterationResult = run.measure(state.train, state.eigenvector)
        eigenvalue, residual = (float(x) for x in jax.device_get((result.eigenvalue, result.residual)))
    # A vector that is not finite would spoil every later measurement.
    eigenvector = result.eigenvector if np.isfinite(residual) else state.eigenvector
    measured = (eigenvalue, residual)
    return state._replace(eigenvector=eigenvector, measured=measured, last_eigenvalue=eigenvalue), eigenvalue


def _decide(controller: ControllerState) -> Decision:
    return Decision(
        int(controller.batch_size), float(controller.lr_scale), float(controller.adversarial_fraction)
    )


def _end_epoch(run: Run, state: LoopState, clock: Clock) -> tuple[dict[str, Any], LoopState]:
    _check_finite(run, state)
    loss, train_state = read_loss(state.train)
    jax.block_until_ready(train_state)
    with clock.measure("eval"):
        accuracy = run.accuracy(train_state)
    tracked: dict[str, float] = {}
    if run.config.track:
        with clock.measure("hessian"):
            tracked = run.track(train_state, state.eigenvector)
    seconds = clock.end_epoch()
    decision = state.decision
    record = {
        "epoch": state.position.epoch,
        "updates": int(train_state.updates),
        "samples": state.samples,
        "batch_size": decision.batch_size,
        "lr": _learning_rate(run, decision),
        "adversarial_fraction": decision.adversarial_fraction,
        "train_loss": loss,
        "test_accuracy": accuracy,
        "eigenvalue": state.measured[0],
        "residual": state.measured[1],
        **tracked,
        **{f"seconds_{name}": value for name, value in seconds.items()},
    }
    return record, state._replace(train=train_state, measured=(float("nan"), float("nan")))


def _learning_rate(run: Run, decision: Decision) -> float:
    # A scale is a float32: more digits than it has would only look exact.
    return float(f"{run.config.lr * decision.lr_scale:.7g}")


def _show(run: Run, state: LoopState, progress: Progress) -> None:
    _check_finite(run, state)
    loss, weight = jax.device_get((state.train.loss, state.train.loss_weight))
    progress.show(
        state.samples,
        epoch=f"{state.position.epoch}/{run.config.epochs}",
        updates=int(state.train.updates),
        loss=float(loss / weight) if weight > 0 else None,
        batch=state.decision.batch_size,
        lr=_learning_rate(run, state.decision),
        eigenvalue=state.last_eigenvalue,
    )


def _check_finite(run: Run, state: LoopState) -> None:
    update = int(state.train.nonfinite_update)
    if update:
        # At the end of an epoch the position is already that of the next one.
        epoch = state.position.epoch + (state.position.index > 0)
        raise FloatingPointError(
            f"The training loss is not finite at update {update} (epoch {epoch}, batch size "
            f"{state.decision.batch_size}, learning rate {_learning_rate(run, state.decision):g}); "
            "lower --lr, or the largest batch size."
        )
