"""Which batches a run drops after a loss that is not finite; each time is a line of ``events.jsonl``.

The batch of the update that failed is dropped. If the update that takes its number fails as well, the fault
may be older than the batch that showed it, and the drop grows by the batch before it. It all follows from the
lines, so a run that is killed after a rewind makes the same way again.
"""

from collections.abc import Sequence
from typing import Any

from hessabs.training.loop_state import Drop

MOST_REWINDS = 5


def next_event(events: Sequence[dict[str, Any]], update: int) -> dict[str, Any]:
    """Make the line of a rewind.

    Args:
      events: The lines so far.
      update: The update that failed, from 1.

    Returns:
      The line: the update that failed, the first update whose batch is dropped, and how many batches.

    Example:
      >>> first = next_event([], 7)
      >>> first["first_dropped"], first["batches"]
      (7, 1)
      >>> second = next_event([first], 7)
      >>> second["first_dropped"], second["batches"]
      (6, 2)
    """
    last = events[-1] if events else None
    again = last is not None and last["first_dropped"] <= update <= last["update"]
    first, batches = (last["first_dropped"] - 1, last["batches"] + 1) if last and again else (update, 1)
    return {"event": "rewind", "update": update, "first_dropped": max(first, 1), "batches": batches}


def dropped(pending: Sequence[Drop], events: Sequence[dict[str, Any]], updates: int) -> tuple[Drop, ...]:
    """List the batches to drop after a checkpoint.

    Args:
      pending: Those that the checkpoint knows of.
      events: The lines written after it.
      updates: Updates made at the checkpoint: a drop can begin with the next one at the earliest.

    Returns:
      Drops in the order of their updates; a later line replaces those from its first update on.
    """
    drops = list(pending)
    for event in events:
        drop = Drop(max(int(event["first_dropped"]), updates + 1), int(event["batches"]))
        drops = [*(other for other in drops if other.update < drop.update), drop]
    return tuple(drops)
