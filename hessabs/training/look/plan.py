"""The text of ``hessabs plan``, and the times of an update and a measurement on this machine."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs.batch_size import Bounds, Plan, constant, training_seconds
from hessabs.data import Position, hold_out
from hessabs.data.datasets import count_train
from hessabs.training.loop_state import start
from hessabs.training.optimizers import OptimizerSettings, make_optimizer
from hessabs.training.run import prepare
from hessabs.training.task import Task
from hessabs.training.tasks.named import TaskSettings


class StepSeconds(NamedTuple):
    """What an update and a measurement take, in seconds."""

    compute: float
    communicate: float
    hessian: float


def report(
    bounds: Bounds,
    whole: Bounds,
    rates: Callable[[Plan], Sequence[float]],
    times: StepSeconds | None = None,
) -> str:
    """Write a plan down: a table by epoch, then the totals.

    ``bounds``: the plans with the fewest and the most updates, as the slides count; ``whole``: the same in
    whole updates, as ``hessabs train`` makes them; ``rates``: the learning rates at the ends of the epochs of a
    plan; ``times``: what a step takes, if the time is wanted.
    """
    single = bounds.fewest.epochs == bounds.most.epochs
    plans = (bounds.most,) if single else (bounds.fewest, bounds.most)
    columns = "".join(f"{'batch':>9}{'lr':>11}{'updates':>12}" for _ in plans)
    lines = [] if single else [f"{'':5}{'earliest growth':>32}{'latest growth':>32}"]
    lines.append(f"epoch{columns}")
    for both in zip(*(zip(plan.epochs, rates(plan), strict=True) for plan in plans), strict=True):
        cells = "".join(f" {row.batch_size:>8}{lr:>11.5g}{int(row.updates):>12}" for row, lr in both)
        lines.append(f"{both[0][0].epoch:>5}{cells}")
    lines += [
        f"updates: {_both(bounds, lambda plan: plan.updates)}",
        f"updates of `hessabs train`: {_both(whole, lambda plan: plan.updates)}",
        f"measurements: {_both(bounds, lambda plan: plan.measurements)}",
    ]
    if times is not None:

        def seconds(plan: Plan) -> str:
            return f"{training_seconds(plan.updates, plan.measurements, **times._asdict()):.1f}"

        parts = f"T_comp {times.compute:.3g}, T_comm {times.communicate:.3g}, T_Hess {times.hessian:.3g}"
        lines.append(f"seconds: {_both(bounds, seconds)} ({parts})")
    return "\n".join(lines)


def num_examples(settings: TaskSettings) -> int:
    """Count the examples that a run trains on, without those that it holds out."""
    number = count_train(
        settings.dataset,
        data_dir=settings.data_dir,
        train_split=settings.train_split,
        sequence_length=settings.sequence_length,
    )
    rest, _ = hold_out({"row": np.arange(number)}, settings.validation_examples)
    return len(rest)


def measure_seconds(task: Task, micro_batch_size: int) -> StepSeconds:
    """Measure what an update and a measurement take on this machine, on one device.

    An update is one micro-batch and one step of SGD: the time table's assumption is that as many more devices
    share a larger batch. The medians of five, after one that compiles; the time of communication is 0.
    """
    run = prepare(
        task,
        make_optimizer(OptimizerSettings(), batch_size=micro_batch_size),
        constant(micro_batch_size),
        micro_batch_size=micro_batch_size,
    )
    batch, _ = run.read_from(Position(0, 0))(1)
    state = start(run)
    train, eigenvector = state.train, state.eigenvector

    def update() -> Any:
        nonlocal train
        train = run.functions.whole(train, batch, None, 1.0)
        return train

    def measure() -> Any:
        return run.measure(train.params, train.model_state, eigenvector)

    return StepSeconds(median_seconds(update), 0.0, median_seconds(measure))


def median_seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Time a function, the median of so many calls after one that compiles."""
    jax.block_until_ready(function())
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _both(bounds: Bounds, get: Callable[[Plan], Any]) -> str:
    fewest, most = get(bounds.fewest), get(bounds.most)
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"
