"""What a run says of itself: where it is, the line of an epoch, its progress, and a summary at its end."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

import hessabs
from hessabs import trees
from hessabs.curvature import PowerIterationResult
from hessabs.training.clock import Clock
from hessabs.training.finite import check_loss
from hessabs.training.loop_state import NOT_MEASURED, LoopState
from hessabs.training.progress import Progress
from hessabs.training.run import Run
from hessabs.training.step import TrainState, averaged, mean_loss, read_loss
from hessabs.transforms import GuardedLearningRateState
from hessabs.typing import Params

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def said(state: LoopState, lr: float) -> dict[str, Any]:
    """Say where a run is and what its last update was, or its next one will be after a decision."""
    return {
        "updates": state.updates,
        "samples": state.samples,
        "batch_size": state.decision.batch_size,
        "lr": lr,
        "adversarial_fraction": state.decision.adversarial_fraction,
    }


def _guarded(opt_state: Any) -> dict[str, float]:
    """Say what a guard has made of the learning rate in the last update, where there is one."""
    found = trees.nodes(opt_state, GuardedLearningRateState)
    return {"guarded_lr": float(found[0].learning_rate)} if found else {}


def end_epoch(run: Run, state: LoopState, epoch: int, clock: Clock) -> tuple[dict[str, Any], LoopState]:
    """Evaluate at the end of an epoch: its line of ``metrics.jsonl``, and the state in the next one."""
    check_loss(run, state)
    loss, train_state = read_loss(state.train)
    jax.block_until_ready(train_state)
    with clock.measure("eval"):
        seen = evaluated(run, train_state)
        results = evaluate_all(run.evaluate, seen.params, seen.model_state)
        if run.settings.ema is not None:
            average = averaged(train_state)
            found = evaluate_all(run.evaluate, average, run.refresh(average, seen.model_state))
            results |= {f"ema_{name}": value for name, value in found.items()}
    tracked: dict[str, float] = {}
    if run.settings.tracked:
        with clock.measure("hessian"):
            tracked = run.track(seen.params, seen.model_state, state.eigenvector)
    record = {
        "epoch": epoch,
        **said(state, state.lr),
        **_guarded(train_state.opt_state),
        "train_loss": loss,
        **results,
        "eigenvalue": state.measured[0],
        "residual": state.measured[1],
        **tracked,
        **{f"seconds_{name}": value for name, value in clock.end_epoch().items()},
    }
    return record, state._replace(train=train_state, measured=NOT_MEASURED)


def evaluated(run: Run, state: TrainState) -> TrainState:
    """Return a state with what is evaluated: the params that schedule-free methods make of theirs, and the
    state of the model at these.
    """
    params = run.optimizer.evaluation_params(state.opt_state, state.params)
    if params is state.params:
        return state
    return state._replace(params=params, model_state=run.refresh(params, state.model_state))


def evaluate_all(evaluations: Mapping[str, Any], params: Params, model_state: Any) -> dict[str, float]:
    """Evaluate, and name each number by its prefix; accuracies are in percent."""
    return {
        f"{prefix}{name}": 100 * value if name.endswith("accuracy") else value
        for prefix, evaluation in evaluations.items()
        for name, value in evaluation(params, model_state).items()
    }


def show(run: Run, state: LoopState, progress: Progress, ended: dict[str, Any] | None = None) -> None:
    """Show the progress of a run, if its loss is finite; ``ended`` is the line of an epoch that ends here."""
    check_loss(run, state)
    loss = mean_loss(state.train) if ended is None else ended["train_loss"]
    shown: dict[str, Any] = {}
    if ended is not None and "test_accuracy" in ended:
        shown = {"test": f"{ended['test_accuracy']:.2f}%"}
    elif ended is not None:
        shown = {"test_loss": ended["test_loss"]}
    progress.show(
        state.samples,
        milestone=ended is not None,
        epoch=f"{state.position.epoch}/{run.epochs}",
        loss=loss if loss == loss else None,
        **shown,
        batch=state.decision.batch_size,
        lr=state.lr,
        eigenvalue=state.last_eigenvalue,
        updates=state.updates,
    )


def summarize(
    run: Run,
    state: TrainState,
    records: list[dict[str, Any]],
    results: dict[str, float],
    curvature: PowerIterationResult,
    seconds: float,
    seconds_compile: float,
) -> dict[str, Any]:
    """Gather the summary of a run, as JSON holds it: settings, results, compilations and versions."""
    last = records[-1]
    return {
        **run.record["config"],
        "updates": int(state.updates),
        "samples": last["samples"],
        **{name: value for name, value in last.items() if name.startswith(("test_", "ema_"))},
        **results,
        "final_batch_size": last["batch_size"],
        "eigenvalue": float(curvature.eigenvalue),
        "eigenvalue_residual": float(curvature.residual),
        "compilations": {name: count for name, count in run.functions.compilations().items() if count},
        "seconds": seconds,
        "seconds_compile": seconds_compile,
        "seconds_hessian": sum(record["seconds_hessian"] for record in records),
        "versions": {
            "hessabs": hessabs.__version__,
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in _PACKAGES},
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
