"""A loss or params that are not finite: which update was it, and which batches does a run drop that is rewound?

The batch of the update that failed is dropped. If the update that takes its number fails as well, the fault
may be older than the batch that showed it, and the drop grows by the batch before it. It all follows from the
lines of ``events.jsonl``, so a run that is killed after a rewind makes the same way again.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from hessabs.training.loop_state import Drop, LoopState, learning_rate, rate_factor
from hessabs.training.run import Run

MOST_REWINDS = 5


class NonFiniteError(FloatingPointError):
    """A loss or params that are not finite; the batch of ``update``, from 1, is to blame, it seems."""

    def __init__(self, message: str, update: int) -> None:
        super().__init__(message)
        self.update = update


def check_loss(run: Run, state: LoopState) -> None:
    """Raise ``NonFiniteError`` unless every training loss was finite.

    It names the epoch and the rate that the update began with, which may be long ago: the loop asks before it
    changes its decision or drops a batch, so all updates since the one that failed were of the same size.
    """
    update = int(state.train.nonfinite_update)
    if update:
        decision, position = state.decision, state.position
        done = position.epoch * run.epoch_micro_batches + position.index
        began = done - (state.updates - update + 1) * run.micro_batches(decision.batch_size)
        epoch, index = divmod(began, run.epoch_micro_batches)
        samples = epoch * run.epoch_examples + index * run.micro_batch_size
        rate = learning_rate(run, rate_factor(run, decision, samples))
        raise NonFiniteError(
            f"The training loss is not finite at update {update} (epoch {epoch + 1}, batch size "
            f"{decision.batch_size}, {run.optimizer.rate_name} {rate:g}); lower the learning rate, "
            "or the largest batch size; at the first updates, look for labels or inputs that are out of range.",
            update,
        )


def check_params(state: LoopState) -> None:
    """Raise ``NonFiniteError`` unless the params are finite."""
    if not bool(_all_finite(state.train.params)):
        raise NonFiniteError(
            f"The params are not finite after the last update, {state.updates}; lower the learning rate.",
            state.updates,
        )


@jax.jit
def _all_finite(params: object) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def next_event(events: Sequence[dict[str, Any]], update: int) -> dict[str, Any]:
    """Make the line of a rewind after an update, from 1, that failed: the first that is dropped, and how many.

    Example:
      >>> first = next_event([], 7)
      >>> second = next_event([first], 7)
      >>> [(event["first_dropped"], event["batches"]) for event in (first, second)]
      [(7, 1), (6, 2)]
    """
    last = events[-1] if events else None
    again = last is not None and last["first_dropped"] <= update <= last["update"]
    first, batches = (last["first_dropped"] - 1, last["batches"] + 1) if last and again else (update, 1)
    return {"event": "rewind", "update": update, "first_dropped": max(first, 1), "batches": batches}


def dropped(pending: Sequence[Drop], events: Sequence[dict[str, Any]], updates: int) -> tuple[Drop, ...]:
    """List the batches to drop after a checkpoint, made after ``updates``, in the order of their updates.

    It knows of those that are ``pending``; each of the events written after it replaces those from its first
    update on.
    """
    drops = list(pending)
    for event in events:
        # A drop can begin with the next update at the earliest.
        drop = Drop(max(int(event["first_dropped"]), updates + 1), int(event["batches"]))
        drops = [*(other for other in drops if other.update < drop.update), drop]
    return tuple(drops)
