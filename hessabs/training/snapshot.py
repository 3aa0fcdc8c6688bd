"""A run between two updates, as arrays by name and a record that JSON can hold.

The names are paths, the record is plain: what is read back are arrays and numbers, and their structure comes
from the run that reads them, never from the file.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs.data import Position
from hessabs.training.loop_state import Decision, Drop, LoopState
from hessabs.training.mesh import place
from hessabs.training.processes import to_host

_ARRAYS = ("train", "controller", "eigenvector")


class Snapshot(NamedTuple):
    """A run between two updates."""

    state: LoopState
    records: list[dict[str, Any]]  # the lines of metrics.jsonl so far
    clock: dict[str, float]  # seconds of this epoch by name
    seconds: float = 0.0  # that the run took so far, in all its processes


def arrays_of(state: LoopState) -> dict[str, np.ndarray]:
    """Copy the arrays of a state to the host, complete when the call returns; all processes must call."""
    leaves = _leaves(state)
    return dict(zip(leaves, to_host(list(leaves.values())), strict=True))


def record_of(snapshot: Snapshot) -> dict[str, Any]:
    """Gather what is no array, as JSON can hold it; numbers that are not finite stay."""
    state = snapshot.state
    return {
        "decision": state.decision._asdict(),
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


def templates(state: LoopState) -> dict[str, np.ndarray]:
    """Make empty arrays of the names, shapes and dtypes that a saved state must have."""
    return {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _leaves(state).items()}


def restore(like: LoopState, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Snapshot:
    """Put a run together again; it shares no buffer with anything, so that its state may be donated.

    Raises:
      KeyError, TypeError, ValueError: If the record is not one of ``record_of``.
    """
    trees = {
        name: jax.tree_util.tree_map_with_path(
            lambda path, leaf, name=name: _place(arrays[_path(name, path)], leaf), getattr(like, name)
        )
        for name in _ARRAYS
    }
    decision, position, measured = record["decision"], record["position"], record["measured"]
    state = like._replace(
        **trees,
        decision=Decision(
            int(decision["batch_size"]), float(decision["lr_scale"]), float(decision["adversarial_fraction"])
        ),
        updates=int(record["updates"]),
        samples=int(record["samples"]),
        position=Position(int(position[0]), int(position[1])),
        measured=(float(measured[0]), float(measured[1])),
        last_eigenvalue=None if record["last_eigenvalue"] is None else float(record["last_eigenvalue"]),
        drops=tuple(Drop(int(update), int(batches)) for update, batches in record["drops"]),
    )
    return Snapshot(
        state,
        [dict(line) for line in record["records"]],
        {str(name): float(value) for name, value in record["clock"].items()},
        float(record["seconds"]),
    )


def _leaves(state: LoopState) -> dict[str, Any]:
    return {
        _path(name, path): leaf
        for name in _ARRAYS
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(state, name))
    }


def _path(name: str, path: Any) -> str:
    return ".".join((name, jax.tree_util.keystr(path, simple=True, separator=".")))


def _place(array: np.ndarray, like: Any) -> Any:
    return place(array, like.sharding) if isinstance(like, jax.Array) else array
