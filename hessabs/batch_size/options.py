"""What every rule shares: the decays, the learning rate's coupling to the batch, the adversarial examples."""

import operator
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import ControllerState, Decay, check_batch_sizes, check_decay, next_event
from hessabs.batch_size.counting import NEVER, Count, divide, minimum, where

Coupling = Literal["linear", "sqrt", "none"]
"""How the learning rate follows the batch: with it (SGD), with its square root (Adam and its kin), or not."""


class Options(NamedTuple):
    """The checked options of a rule, and the state they give."""

    initial: int
    maximum: int
    coupling: Coupling
    decay: Decay
    fraction: float
    fraction_decrease: float
    until: int  # examples after which the adversarial fraction is 0, or NEVER

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """The smallest and the largest batch, as a ``Controller`` says."""
        return self.initial, self.maximum

    def decide(
        self,
        samples: Count,
        batch_size: jax.Array,
        fraction: jax.Array,
        rule: Any = (),
        *,
        lr_scale: Any = 1.0,
        events: Sequence[int | Count] = (),
        measure_at: int | Count = NEVER,
    ) -> ControllerState:
        """Return the state after a decision.

        Args:
          samples: Examples so far.
          batch_size: Examples per update from now on, a scalar int32.
          fraction: Adversarial fraction, a scalar float32, before its end at ``until`` is looked at.
          rule: What the rule remembers.
          lr_scale: A factor on the learning rate beside decay and coupling, a scalar.
          events: Examples at which the rule wants to be called without a measurement.
          measure_at: Examples at the next measurement, or NEVER.

        Returns:
          The state. A measurement that is overdue (an update may end far beyond it) is due at the next update.
        """
        measure_at = Count.of(measure_at)
        measuring, soonest = measure_at < NEVER, samples + 1
        measure_at = where(measure_at < soonest, soonest, measure_at)
        observe_at = next_event(samples, (*self.decay.at, self.until, *events, measure_at))
        scale = self.coupled(batch_size) * self.decay.scale(samples) * lr_scale
        return ControllerState(
            batch_size=jnp.asarray(batch_size, jnp.int32),
            lr_scale=jnp.asarray(scale, jnp.float32),
            adversarial_fraction=jnp.where(samples < self.until, fraction, 0.0).astype(jnp.float32),
            observe_at=observe_at,
            measure=measuring & (observe_at == measure_at),
            rule=rule,
        )

    def coupled(self, batch_size: Any) -> jax.Array:
        """Return the factor on the learning rate that a batch brings, float32 of the batch's shape."""
        # The batch is a multiple of `initial`, or the maximum: nothing is rounded here, so eager and compiled
        # code agree.
        batch_size = jnp.asarray(batch_size)
        factor = (batch_size // self.initial).astype(jnp.float32)
        factor = jnp.where(batch_size == self.maximum, jnp.float32(self.maximum / self.initial), factor)
        if self.coupling == "none":
            return jnp.ones_like(factor)
        return factor if self.coupling == "linear" else jnp.sqrt(factor)

    def shrunk(self, state: ControllerState, batch_size: jax.Array) -> jax.Array:
        """Return the adversarial fraction after growth to a batch: divided once, and 0 at the maximum.

        With ``fraction_decrease`` 1 growth leaves it alone, at the maximum too.
        """
        if self.fraction_decrease == 1:
            return state.adversarial_fraction
        fraction = state.adversarial_fraction * (1 / self.fraction_decrease)
        fraction = jnp.where(batch_size >= self.maximum, 0.0, fraction)
        return jnp.where(batch_size > state.batch_size, fraction, state.adversarial_fraction)


def check_options(
    initial: int,
    maximum: int,
    *,
    lr_coupling: Coupling = "linear",
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 1.0,
    adversarial_fraction: float = 0.0,
    fraction_decrease: float = 1.0,
    adversarial_until: int | None = None,
) -> Options:
    """Check the options that every rule shares.

    Args:
      initial: Examples per update at the start.
      maximum: The most examples per update.
      lr_coupling: ``"linear"``, ``"sqrt"`` or ``"none"``.
      lr_decay_at: Examples after which the learning rate decays, positive and ascending.
      lr_decay: Factor of each decay, in (0, 1].
      adversarial_fraction: Fraction of each batch to replace, in [0, 1].
      fraction_decrease: Divides the fraction at each growth, at least 1.
      adversarial_until: Examples after which the fraction is 0, at least 0; None for never.

    Returns:
      The options.

    Raises:
      ValueError: If one is out of its range.
    """
    check_batch_sizes(initial, maximum)
    if lr_coupling not in get_args(Coupling):
        raise ValueError(f"`lr_coupling` must be one of {list(get_args(Coupling))}, got {lr_coupling!r}.")
    decay = check_decay(lr_decay_at, lr_decay)
    if not 0 <= adversarial_fraction <= 1:
        raise ValueError(f"`adversarial_fraction` must lie in [0, 1], got {adversarial_fraction}.")
    if not 1 <= fraction_decrease < float("inf"):
        raise ValueError(f"`fraction_decrease` must be at least 1, got {fraction_decrease}.")
    until = NEVER if adversarial_until is None else operator.index(adversarial_until)
    if not 0 <= until <= NEVER:
        raise ValueError(f"`adversarial_until` must be at least 0 examples, got {until}.")
    return Options(initial, maximum, lr_coupling, decay, adversarial_fraction, fraction_decrease, until)


def check_above_one(name: str, value: float) -> None:
    """Raise ``ValueError`` unless a factor lies above 1 and is finite.

    Args:
      name: Of the parameter, for the error.
      value: Its value.

    Raises:
      ValueError: If it is not.
    """
    if not 1 < value < float("inf"):
        raise ValueError(f"`{name}` must be above 1, got {value}.")


def check_every(name: str, value: int) -> None:
    """Raise ``ValueError`` unless an interval is at least 1 example.

    Args:
      name: Of the parameter, for the error.
      value: Its value, in examples.

    Raises:
      ValueError: If it is below 1, or as large as 2**60.
    """
    if not 1 <= value < NEVER:
        raise ValueError(f"`{name}` must be at least 1 example, got {value}.")


def check_patience(patience: int | None) -> None:
    """Raise ``ValueError`` unless a patience is None or at least 1 measurement.

    Args:
      patience: In measurements, or None.

    Raises:
      ValueError: If it is neither.
    """
    if patience is not None and patience < 1:
        raise ValueError(f"`patience` must be at least 1 measurement, or None, got {patience}.")


def next_multiple(samples: Count, every: int) -> Count:
    """Return the first multiple of ``every`` above a count of examples, or NEVER.

    Args:
      samples: Examples so far.
      every: Examples, from 1 to below 2**60.

    Returns:
      The multiple.

    Example:
      >>> int(next_multiple(Count.of(1200), 1000))
      2000
    """
    _, beyond = divide(samples, every)
    return minimum(samples + (Count.of(every) - beyond), NEVER)


def grow_by(factor: jax.Array, growth: float) -> jax.Array:
    """Multiply a whole number of initial batches, at least by one more: ``max(f + 1, floor(f * growth))``.

    Args:
      factor: Shape (), int32, initial batches in a batch.
      growth: Above 1.

    Returns:
      Shape (), int32.
    """
    return jnp.maximum(factor + 1, jnp.floor(factor * growth).astype(jnp.int32))


def whole_batches(factor: jax.Array, options: Options) -> jax.Array:
    """Return a whole number of initial batches, the maximum where that is less.

    Args:
      factor: Shape (), int32, initial batches.
      options: Of the rule.

    Returns:
      Examples, shape (), int32.
    """
    most = options.maximum // options.initial
    return jnp.where(factor > most, options.maximum, jnp.minimum(factor, most) * options.initial)


def rounded(a: Any, b: Any) -> jax.Array:
    """Multiply two numbers that are not negative, float32, rounded before anything is added.

    A compiler may fuse a product and a sum, which gives other bits than eager code; the maximum stands between.

    Args:
      a: Scalar, at least 0.
      b: Scalar, at least 0.

    Returns:
      Their product, shape (), float32.
    """
    return jnp.maximum(jnp.asarray(a, jnp.float32) * jnp.asarray(b, jnp.float32), 0)


def ladder(initial: int, maximum: int, growth_factor: float, *, growths: int | None = None) -> list[int]:
    """List the batches that growth goes through, as ``grow_by`` does.

    Args:
      initial: The first; the others are multiples of it, or the last.
      maximum: The last.
      growth_factor: Growth, above 1.
      growths: How many growths; None for as many as reach the last.

    Returns:
      Examples per update.

    Example:
      >>> ladder(2, 25, 1.5)
      [2, 4, 6, 8, 12, 18, 25]
    """
    sizes, factor = [initial], 1
    while len(sizes) <= growths if growths is not None else sizes[-1] < maximum:
        factor = max(factor + 1, int(factor * growth_factor)) if sizes[-1] < maximum else factor
        sizes.append(min(factor * initial, maximum))
    return sizes
