"""The text of ``hessabs plan``, and the times of a step on this machine."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from hessabs.batch_size import Bounds, Plan, training_seconds
from hessabs.batch_size.methods import Settings

_REPEATS = 5


class StepSeconds(NamedTuple):
    """What an update and a measurement take, in seconds."""

    compute: float
    communicate: float
    hessian: float


def report(settings: Settings, bounds: Bounds, whole: Bounds, times: StepSeconds | None = None) -> str:
    """Write a plan down."""
    single = bounds.fewest.epochs == bounds.most.epochs
    plans = (bounds.most,) if single else (bounds.fewest, bounds.most)
    columns = "".join(f"{'batch':>9}{'lr':>11}{'updates':>12}" for _ in plans)
    lines = [] if single else [f"{'':5}{'earliest growth':>32}{'latest growth':>32}"]
    lines.append(f"epoch{columns}")
    for rows in zip(*(plan.epochs for plan in plans), strict=True):
        cells = "".join(
            f" {row.batch_size:>8}{settings.lr * row.lr_scale:>11.5g}{int(row.updates):>12}" for row in rows
        )
        lines.append(f"{rows[0].epoch:>5}{cells}")
    lines.append(f"updates: {_both(bounds, lambda plan: plan.updates)}")
    lines.append(f"updates of `hessabs train`: {_both(whole, lambda plan: plan.updates)}")
    lines.append(f"measurements: {_both(bounds, lambda plan: plan.measurements)}")
    if times is not None:

        def seconds(plan: Plan) -> str:
            total = training_seconds(plan.updates, plan.measurements, **times._asdict())
            return f"{total:.1f}"

        parts = f"T_comp {times.compute:.3g}, T_comm {times.communicate:.3g}, T_Hess {times.hessian:.3g}"
        lines.append(f"seconds: {_both(bounds, seconds)} ({parts})")
    return "\n".join(lines)


def measure_seconds(settings: Settings, dataset: str, data_dir: str | None, model: str) -> StepSeconds:
    """Measure what an update and a measurement take on this machine, on one device.

    An update is one micro-batch and one step of the optimiser: the time table's assumption is that as many
    more devices share a larger batch.
    """
    from hessabs.data import micro_batches
    from hessabs.training.config import Config
    from hessabs.training.loop_state import start
    from hessabs.training.setup import set_up

    size = settings.micro_batch_size or settings.batch_size
    run = set_up(Config(dataset=dataset, data_dir=data_dir, model=model, batch_size=size, max_batch_size=size))
    batch, _ = next(micro_batches(run.dataset.train, size, seed=0))
    state = start(run)
    train_state, eigenvector = state.train, state.eigenvector

    def step() -> Any:
        nonlocal train_state
        train_state = run.functions.apply_update(run.functions.accumulate(train_state, batch), 1.0)
        return train_state

    return StepSeconds(
        _median_seconds(step), 0.0, _median_seconds(lambda: run.measure(train_state, eigenvector))
    )


def _median_seconds(function: Callable[[], Any]) -> float:
    jax.block_until_ready(function())
    taken = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - started)
    return sorted(taken)[_REPEATS // 2]


def _both(bounds: Bounds, get: Callable[[Plan], Any]) -> str:
    fewest, most = get(bounds.fewest), get(bounds.most)
    return f"{fewest}" if fewest == most else f"{fewest} to {most}"
