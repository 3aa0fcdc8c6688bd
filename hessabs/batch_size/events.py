"""Points in time, counted in examples."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hessabs.batch_size.counting import NEVER, Count, at, counts, divide, minimum, where


def num_passed(samples: Count, events: Sequence[int]) -> jax.Array:
    """Count the events at or below a number of examples, a scalar int32.

    >>> int(num_passed(Count.of(300), (100, 300, 400)))
    2
    """
    return jnp.sum(samples >= counts(events), dtype=jnp.int32)


def next_event(samples: Count, events: Sequence[int | Count]) -> Count:
    """Find the first event after a count of examples, in whatever order they are; NEVER for none.

    >>> int(next_event(Count.of(300), (100, 300, 400)))
    400
    """
    # However many are known beforehand, they are one look-up.
    known = sorted(event for event in events if isinstance(event, int))
    first = at(counts([*known, NEVER]), num_passed(samples, known))
    for event in events:
        if not isinstance(event, int):
            first = minimum(first, where(event > samples, event, NEVER))
    return first


def next_multiple(samples: Count, every: int) -> Count:
    """Return the first multiple of ``every`` above a count of examples, or NEVER.

    >>> int(next_multiple(Count.of(1200), 1000))
    2000
    """
    _, beyond = divide(samples, every)
    return minimum(samples + (Count.of(every) - beyond), NEVER)


def check_events(name: str, events: Sequence[int]) -> tuple[int, ...]:
    """Return points in time as Python ints, or raise ``ValueError`` unless they are positive and ascend."""
    points = tuple(events)
    if any(not 0 < point < NEVER for point in points) or list(points) != sorted(set(points)):
        raise ValueError(f"`{name}` must be positive counts of examples that ascend, got {points}.")
    return tuple(map(operator.index, points))


def check_every(name: str, value: int) -> None:
    """Raise ``ValueError`` unless an interval is at least 1 example and below 2**60."""
    if not 1 <= value < NEVER:
        raise ValueError(f"`{name}` must be at least 1 example, got {value}.")
