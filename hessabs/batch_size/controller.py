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

``controller.measures`` says what a measurement is: a top eigenvalue of the Hessian, of the whole network or of
its last layer, or the gradient statistics of the update just made.

A decision holds for whole updates: a trainer that accumulates gradients takes it up when an update is complete,
so that no update mixes two batch sizes.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

NEVER = 2**31 - 1
"""The count of examples that stands for "never"."""


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

    samples: ArrayLike  # shape (), int32: examples trained on so far
    eigenvalue: ArrayLike | None = None  # shape (), float32: top Hessian eigenvalue, fresh if asked for
    standard_error: ArrayLike | None = None  # shape (), float32: of an eigenvalue averaged over batches
    gradient: GradientStatistics | None = None  # of the last update, fresh if asked for


class ControllerState(NamedTuple):
    """What a controller decided, and what it wants to be told next."""

    batch_size: jax.Array  # shape (), int32: examples per update
    lr_scale: jax.Array  # shape (), float32: the learning rate is lr * lr_scale
    adversarial_fraction: jax.Array  # shape (), float32: fraction of each batch to replace
    observe_at: jax.Array  # shape (), int32: call update once this many examples have been trained on
    measure: jax.Array  # shape (), bool: whether that call must carry a fresh measurement
    rule: Any  # what the rule itself remembers, a pytree of arrays


class Controller(NamedTuple):
    """A rule for the batch size: two pure functions, usable under jit and scan and from a Python loop."""

    init: Callable[[], ControllerState]
    update: Callable[[Observation, ControllerState], ControllerState]
    measures: Measurement = "eigenvalue"  # what `state.measure` asks for; static


class Decay(NamedTuple):
    """A step decay of the learning rate, by examples."""

    at: tuple[int, ...]  # examples after which the rate is multiplied by `factor`, ascending
    factor: float

    def scale(self, samples: Any) -> jax.Array:
        """Return the product of the decays that have happened, a float32 scalar."""
        # A table and not a power: the same bits from eager code, jit and scan, and each entry rounded once.
        table = jnp.asarray([self.factor**count for count in range(len(self.at) + 1)], jnp.float32)
        return table[num_passed(samples, self.at)]

    def next(self, samples: Any) -> jax.Array:
        """Return the examples at the first decay still to come, an int32 scalar, or NEVER."""
        return next_event(samples, self.at)


def num_passed(samples: Any, events: Sequence[int]) -> jax.Array:
    """Count the events that have happened.

    Args:
      samples: Examples so far, a scalar.
      events: Counts of examples.

    Returns:
      How many events are at or below ``samples``, a scalar int32.

    Example:
      >>> int(num_passed(300, (100, 300, 400)))
      2
    """
    return jnp.sum(jnp.asarray(samples) >= jnp.asarray(tuple(events), jnp.int32), dtype=jnp.int32)


def next_event(samples: Any, events: Sequence[Any]) -> jax.Array:
    """Find the first event after a count of examples.

    Args:
      samples: Examples so far, a scalar.
      events: Counts of examples, scalars, in any order.

    Returns:
      The smallest event above ``samples``, an int32 scalar, or NEVER.

    Example:
      >>> int(next_event(300, (100, 300, 400)))
      400
    """
    upcoming = [jnp.where(jnp.asarray(event) > samples, event, NEVER) for event in events]
    return jnp.asarray(jnp.min(jnp.stack(upcoming)) if upcoming else NEVER, jnp.int32)


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
      >>> float(check_decay((10, 20), 0.5).scale(15))
      0.5
    """
    points = tuple(lr_decay_at)
    if any(not 0 < at < NEVER for at in points) or list(points) != sorted(set(points)):
        raise ValueError(f"`lr_decay_at` must be positive counts of examples that ascend, got {points}.")
    if not 0 < lr_decay <= 1:
        raise ValueError(f"`lr_decay` must lie in (0, 1], got {lr_decay}.")
    return Decay(points, lr_decay)


def check_batch_sizes(initial: int, maximum: int) -> None:
    """Check the range of a batch size that grows.

    Args:
      initial: Examples per update at the start.
      maximum: The most examples per update.

    Raises:
      ValueError: If ``initial`` lies outside [1, maximum], or ``maximum`` is no multiple of it.
    """
    if not 1 <= initial <= maximum:
        raise ValueError(f"`initial` must lie in [1, maximum={maximum}], got {initial}.")
    if maximum % initial:
        raise ValueError(
            f"`maximum` must be a multiple of initial={initial}, got {maximum}; "
            f"the nearest below is {maximum // initial * initial}."
        )
