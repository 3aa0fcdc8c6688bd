"""A run between two micro-batches, as arrays by name and a record that JSON can hold.

The names are paths, the record is plain: what is read back are arrays and numbers, and their structure comes
from the run that reads them, never from the file.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs.data import Position
from hessabs.training.devices.mesh import place
from hessabs.training.devices.regroup import saved_shape
from hessabs.training.devices.sharing import to_host
from hessabs.training.loop_state import Decision, Drop, LoopState

_ARRAYS = ("train", "controller", "eigenvector")


class Snapshot(NamedTuple):
    """A run between two micro-batches."""

    state: LoopState
    records: list[dict[str, Any]]  # the lines of metrics.jsonl so far
    clock: dict[str, float]  # seconds of this epoch by name
    seconds: float = 0.0  # that the run took so far, in all its processes


def arrays_of(state: LoopState) -> dict[str, np.ndarray]:
    """Copy the arrays of a state to the host.

    The copy is complete when the call returns: the buffers may be donated to the next step. Of several
    processes all must call.

    Args:
      state: The state of a loop.

    Returns:
      Path to array, each a copy of its own.
    """
    leaves = _leaves(state)
    return dict(zip(leaves, to_host(list(leaves.values())), strict=True))


def record_of(snapshot: Snapshot) -> dict[str, Any]:
    """Gather what is no array.

    Args:
      snapshot: A run between two micro-batches.

    Returns:
      A dictionary that JSON can hold; numbers that are not finite stay (as Python's JSON writes them).
    """
    state = snapshot.state
    return {
        "decision": state.decision._asdict(),
        "accumulated": state.accumulated,
        "updates": state.updates,
        "samples": state.samples,
        "position": list(state.position),
        "measured": list(state.measured),
        "last_eigenvalue": state.last_eigenvalue,
        "drops": [list(drop) for drop in state.drops],
        "dropping": state.dropping,
        "records": [dict(record) for record in snapshot.records],
        "seconds": snapshot.seconds,
        "clock": dict(snapshot.clock),
    }


def templates(state: LoopState, now: int = 1, saved: int = 1) -> dict[str, np.ndarray]:
    """Make empty arrays of the names, shapes and dtypes that a saved state must have.

    Args:
      state: A state of the run that is to go on.
      now: Its devices.
      saved: The devices of the run that was saved.

    Returns:
      Path to array.
    """
    return {
        name: np.empty(saved_shape(name, leaf.shape, now, saved), leaf.dtype)
        for name, leaf in _leaves(state).items()
    }


def restore(like: LoopState, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> Snapshot:
    """Put a run together again.

    Args:
      like: A state of the run that is to go on; arrays go where its arrays are.
      arrays: What ``arrays_of`` returned, with the names, shapes and dtypes of ``templates(like)``.
      record: What ``record_of`` returned.

    Returns:
      A ``Snapshot`` that shares no buffer with anything, so that its state may be donated.

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
        accumulated=int(record["accumulated"]),
        updates=int(record["updates"]),
        samples=int(record["samples"]),
        dropping=int(record["dropping"]),
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
