"""All that the rest of a run depends on, between two updates: in memory, and as arrays and a record on disk.

The names of the arrays are paths, the record is what JSON can hold: what is read back are arrays and numbers,
and their structure comes from the run that reads them, never from the file.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs import trees
from hessabs.batch_size import ControllerState
from hessabs.data import Position
from hessabs.training.mesh import place
from hessabs.training.objectives import Objective
from hessabs.training.processes import to_host
from hessabs.training.run import Run
from hessabs.training.step import TrainState
from hessabs.typing import Params

NOT_MEASURED = (float("nan"), float("nan"))


class Decision(NamedTuple):
    """What a rule decided, as numbers of the host; it holds for a whole update."""

    batch_size: int
    lr_scale: float
    adversarial_fraction: float

    @classmethod
    def of(cls, objective: Objective, controller: ControllerState) -> "Decision":
        """Read the decision of a rule; a robust objective may fix the adversarial fraction."""
        fraction = (
            float(controller.adversarial_fraction) if objective.follows_rule else objective.fraction or 0.0
        )
        return cls(int(controller.batch_size), float(controller.lr_scale), fraction)


class Drop(NamedTuple):
    """Batches that are not trained on, because one of them led to a loss that is not finite."""

    update: int  # the update that the first of them would have made, from 1
    batches: int


class LoopState(NamedTuple):
    """All that the rest of a run depends on: the order of the data is a function of seed and position."""

    train: TrainState
    controller: ControllerState  # on the host
    decision: Decision  # of the next update
    lr: float  # of the last update, before a guard; until there is one, of the first
    updates: int  # train.updates, known to the host
    samples: int  # examples trained on, and those dropped
    position: Position  # of the stream
    eigenvector: Params  # of the last measurement, where the next one starts
    measured: tuple[float, float]  # (eigenvalue, residual) last measured in this epoch, else nan
    last_eigenvalue: float | None  # of the last measurement, for the progress bar
    drops: tuple[Drop, ...]  # still to come, by update


class Snapshot(NamedTuple):
    """A run between two updates."""

    state: LoopState
    records: list[dict[str, Any]]  # the lines of metrics.jsonl so far
    clock: dict[str, float]  # seconds of this epoch by name
    seconds: float = 0.0  # that the run took so far, in all its processes


def start(run: Run) -> LoopState:
    """Make the state of a run before its first update."""
    key = jax.random.fold_in(jax.random.key(run.settings.seed), 1)
    controller: Any = jax.device_get(run.rule.init())
    params = run.state.params
    eigenvector = trees.normal_like(key, params)
    decision = Decision.of(run.objective, controller)
    return LoopState(
        train=run.state,
        controller=controller,
        decision=decision,
        lr=learning_rate(run, rate_factor(run, decision, 0)),
        updates=0,
        samples=0,
        position=Position(0, 0),
        eigenvector=eigenvector,
        measured=NOT_MEASURED,
        last_eigenvalue=None,
        drops=(),
    )


def rate_factor(run: Run, decision: Decision, samples: int) -> float:
    """Return what scales the learning rate of an update that begins after so many samples."""
    return decision.lr_scale * run.schedule(samples)


def learning_rate(run: Run, factor: float) -> float:
    """Return the learning rate of an update by its factor, in a float32's digits."""
    return float(f"{run.optimizer.lr * factor:.7g}")


def arrays_of(state: LoopState) -> dict[str, np.ndarray]:
    """Copy the arrays of a state to the host, complete when the call returns; all processes must call."""
    leaves = trees.by_path(_arrays(state))
    return dict(zip(leaves, to_host(list(leaves.values())), strict=True))


def templates(state: LoopState) -> dict[str, np.ndarray]:
    """Make empty arrays of the names, shapes and dtypes that a saved state must have."""
    return {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in trees.by_path(_arrays(state)).items()}


def record_of(snapshot: Snapshot) -> dict[str, Any]:
    """Gather what is no array, as JSON can hold it; numbers that are not finite stay."""
    state = snapshot.state
    return {
        "decision": state.decision._asdict(),
        "lr": state.lr,
        "updates": state.updates,
        "samples": state.samples,
        "position": list(state.position),
        "measured": list(state.measured),
        "last_eigenvalue": state.last_eigenvalue,
        "drops": [list(drop) for drop in state.drops],
        "records": [dict(record) for record in snapshot.records],
        "seconds": snapshot.seconds,
        "clock": dict(snapshot.clock),
    }


def restore(like: LoopState, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Snapshot:
    """Put a run together again; it shares no buffer with anything, so that its state may be donated.

    KeyError, TypeError or ValueError: the record is not one of ``record_of``.
    """
    leaves = [
        place(arrays[name], leaf.sharding) if isinstance(leaf, jax.Array) else arrays[name]
        for name, leaf in trees.by_path(_arrays(like)).items()
    ]
    eigenvalue, residual = record["measured"]
    state = like._replace(
        **jax.tree.unflatten(jax.tree.structure(_arrays(like)), leaves),
        decision=Decision(**record["decision"]),
        lr=float(record["lr"]),
        updates=int(record["updates"]),
        samples=int(record["samples"]),
        position=Position(*map(int, record["position"])),
        measured=(float(eigenvalue), float(residual)),
        last_eigenvalue=record["last_eigenvalue"],
        drops=tuple(Drop(*map(int, drop)) for drop in record["drops"]),
    )
    return Snapshot(state, list(record["records"]), dict(record["clock"]), float(record["seconds"]))


def _arrays(state: LoopState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("controller", "eigenvector", "train")}
