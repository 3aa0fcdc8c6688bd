"""The controller protocol: a pure state machine that decides how the next updates are made.

A controller decides three things together: the batch size, the factor on the learning rate (growth AND decay)
and the fraction of adversarial examples. It counts in examples, so nothing drifts when the batch grows, and it
says when it wants to be told and whether it wants a measurement then::

    state = controller.init()
    while training:
        ...  # updates of state.batch_size examples, with learning rate lr * state.lr_scale
        if samples >= state.observe_at:
            eigenvalue = measure() if state.measure else float("nan")
            state = controller.update(Observation(samples, eigenvalue), state)

Counts of examples go up to 2**60: ``samples`` may be any Python int. In jitted code it is a ``Count``, or an
int32 where that suffices, for JAX cuts larger integers down without a word.

``controller.measures`` says what a measurement is: a top eigenvalue of the Hessian, of the whole network or of
its last layer, or the gradient statistics of the update just made.

A decision holds for whole updates: a trainer that accumulates gradients takes it up when an update is complete,
so that no update mixes two batch sizes.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hessabs.batch_size.counting import NEVER, Count, at, counts, minimum, where

Measurement = Literal["nothing", "eigenvalue", "last_layer_eigenvalue", "gradient"]
"""What a rule asks for: the field of the observation, and for an eigenvalue the block of the Hessian."""


class GradientStatistics(NamedTuple):
    """What the gradients of equal parts of one batch (micro-batches, devices) say about their noise.

    With part gradients g_1 .. g_k of ``part_size`` examples each and g their mean. A rule that reads them can
    do nothing where k is 1.
    """

    part_size: ArrayLike  # shape (), int32: examples in each part
    num_parts: ArrayLike  # shape (), int32: k
    mean_square: ArrayLike  # shape (), float32: the mean of ||g_i||^2
    square_mean: ArrayLike  # shape (), float32: ||g||^2
    inner_square: ArrayLike | None = None  # shape (), float32: the mean of (g_i . g)^2, where known


class Observation(NamedTuple):
    """What a controller is told."""

    samples: Count | ArrayLike  # examples trained on so far: a count, a Python int or an int32 scalar
    eigenvalue: ArrayLike | None = None  # shape (), float32: top Hessian eigenvalue, fresh if asked for; or NaN
    standard_error: ArrayLike | None = None  # shape (), float32: of an eigenvalue averaged over batches
    gradient: GradientStatistics | None = None  # of the last update, fresh if asked for


class ControllerState(NamedTuple):
    """What a controller decided, and what it wants to be told next."""

    batch_size: jax.Array  # shape (), int32: examples per update
    lr_scale: jax.Array  # shape (), float32: the learning rate is lr * lr_scale
    adversarial_fraction: jax.Array  # shape (), float32: fraction of each batch to replace
    observe_at: Count  # call update once this many examples have been trained on; NEVER for never
    measure: jax.Array  # shape (), bool: whether that call must carry a fresh measurement
    rule: Any  # what the rule itself remembers, a pytree of arrays


class Controller(NamedTuple):
    """A rule for the batch size: two pure functions, usable under jit and scan and from a Python loop."""

    init: Callable[[], ControllerState]
    update: Callable[[Observation, ControllerState], ControllerState]
    measures: Measurement = "eigenvalue"  # what `state.measure` asks for; static
    batch_sizes: tuple[int, int] | None = None  # the smallest and the largest that it decides for; static


class Decay(NamedTuple):
    """A step decay of the learning rate, by examples."""

    at: tuple[int, ...]  # examples after which the rate is multiplied by `factor`, ascending
    factor: float

    def scale(self, samples: Count) -> jax.Array:
        """Return the product of the decays that have happened, a float32 scalar."""
        # A table and not a power: the same bits from eager code, jit and scan, and each entry rounded once.
        table = jnp.asarray([self.factor**count for count in range(len(self.at) + 1)], jnp.float32)
        return table[num_passed(samples, self.at)]


def num_passed(samples: Count, events: Sequence[int]) -> jax.Array:
    """Count the events that have happened.

    Args:
      samples: Examples so far.
      events: Numbers of examples.

    Returns:
      How many events are at or below ``samples``, a scalar int32.

    Example:
      >>> int(num_passed(Count.of(300), (100, 300, 400)))
      2
    """
    return jnp.sum(samples >= counts(events), dtype=jnp.int32)


def next_event(samples: Count, events: Sequence[int | Count]) -> Count:
    """Find the first event after a count of examples.

    Args:
      samples: Examples so far.
      events: Numbers of examples, in any order: those that are known beforehand as Python ints.

    Returns:
      The smallest event above ``samples``, or NEVER.

    Example:
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


def check_decay(lr_decay_at: Sequence[int], lr_decay: float) -> Decay:
    """Check the decay points of a learning rate.

    Args:
      lr_decay_at: Examples after which the rate decays, positive and ascending.
      lr_decay: Factor at each, in (0, 1].

    Returns:
      The decay.

    Raises:
      ValueError: If a point is not positive, the points do not ascend, or the factor lies outside (0, 1].

    Example:
      >>> float(check_decay((10, 20), 0.5).scale(Count.of(15)))
      0.5
    """
    points = check_events("lr_decay_at", lr_decay_at)
    if not 0 < lr_decay <= 1:
        raise ValueError(f"`lr_decay` must lie in (0, 1], got {lr_decay}.")
    return Decay(points, lr_decay)


def check_events(name: str, events: Sequence[int]) -> tuple[int, ...]:
    """Check points in time that are given by their examples.

    Args:
      name: Of the parameter, for the error.
      events: Numbers of examples, positive, below 2**60 and ascending.

    Returns:
      The same, as Python ints.

    Raises:
      ValueError: If they are not.
    """
    points = tuple(events)
    if any(not 0 < point < NEVER for point in points) or list(points) != sorted(set(points)):
        raise ValueError(f"`{name}` must be positive counts of examples that ascend, got {points}.")
    return tuple(map(operator.index, points))


def check_batch_sizes(initial: int, maximum: int) -> None:
    """Check the range of a batch size that grows.

    Args:
      initial: Examples per update at the start.
      maximum: The most examples per update.

    Raises:
      ValueError: If ``initial`` lies outside [1, maximum], or ``maximum`` is beyond int32.
    """
    if not 1 <= initial <= maximum:
        raise ValueError(f"`initial` must lie in [1, maximum={maximum}], got {initial}.")
    if maximum >= 2**31:
        raise ValueError(f"`maximum` must be below 2**31 examples per update, got {maximum}.")
