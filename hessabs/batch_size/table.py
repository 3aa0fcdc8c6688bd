"""Batch sizes that are known beforehand: any table, and the linear ramp of language models."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import (
    Controller,
    ControllerState,
    Observation,
    check_batch_sizes,
    check_events,
    num_passed,
)
from hessabs.batch_size.counting import NEVER, Count, minimum, where
from hessabs.batch_size.options import Coupling, check_options, rounded


def schedule(
    sizes: Sequence[int],
    at: Sequence[int],
    *,
    lr_scales: Sequence[float] | None = None,
    lr_coupling: Coupling = "linear",
    lr_cooldown: tuple[int, int] | None = None,
    lr_final: float = 0.0,
    adversarial_fraction: float = 0.0,
    fraction_decrease: float = 2.0,
    adversarial_until: int | None = None,
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
) -> Controller:
    """Take batch sizes from a table: any sizes, at any times, growing or falling.

    Args:
      sizes: Examples per update, each at least 1, in the order of time.
      at: Examples after which the next of them begins, positive and ascending, one less than ``sizes``.
      lr_scales: Factor on the learning rate with each size, beside the coupling; None for 1.
      lr_coupling: How the learning rate follows the batch: ``"linear"``, ``"sqrt"`` or ``"none"``.
      lr_cooldown: Examples at which the learning rate begins to fall in a straight line, and at which it has
        fallen; the rule then wants to be called at every update. None for no cool-down.
      lr_final: What is left of the learning rate after the cool-down, in [0, 1].
      adversarial_fraction: Fraction of each batch to replace by adversarial examples, in [0, 1].
      fraction_decrease: Divides the fraction at each growth, at least 1; it is 0 at the largest batch, except
        with 1, which leaves it alone.
      adversarial_until: Examples after which the fraction is 0; None for never.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> controller = schedule([100, 130, 250], at=[10**12, 3 * 10**12], lr_coupling="sqrt")
      >>> state = controller.update(Observation(10**12), controller.init())
      >>> int(state.batch_size), round(float(state.lr_scale) ** 2, 6), int(state.observe_at)
      (130, 1.3, 3000000000000)
    """
    points = check_events("at", at)
    if len(sizes) != len(points) + 1 or min(sizes) < 1:
        raise ValueError(
            "`sizes` must be batch sizes of at least 1, one more of them than `at` has times, got "
            f"{tuple(sizes)} for {points}."
        )
    options = check_options(
        sizes[0],
        max(sizes),
        lr_coupling=lr_coupling,
        lr_decay_at=lr_decay_at,
        lr_decay=lr_decay,
        adversarial_fraction=adversarial_fraction,
        fraction_decrease=fraction_decrease,
        adversarial_until=adversarial_until,
    )
    rates = [1.0] * len(sizes) if lr_scales is None else list(lr_scales)
    if len(rates) != len(sizes) or not all(0 <= rate < float("inf") for rate in rates):
        raise ValueError(f"`lr_scales` must be a factor of at least 0 for each of {tuple(sizes)}, got {rates}.")
    start, end = (NEVER, NEVER) if lr_cooldown is None else lr_cooldown
    if lr_cooldown is not None and not 0 <= start < end < NEVER:
        raise ValueError(f"`lr_cooldown` must be two ascending counts of examples, got {lr_cooldown}.")
    if not 0 <= lr_final <= 1:
        raise ValueError(f"`lr_final` must lie in [0, 1], got {lr_final}.")

    growth = {"linear": float, "sqrt": math.sqrt, "none": lambda ratio: 1.0}[lr_coupling]
    rates = [rate * growth(size / sizes[0]) for size, rate in zip(sizes, rates, strict=True)]
    fractions = [options.fraction]
    for before, after in itertools.pairwise(sizes):
        ends = options.fraction_decrease > 1 and after == options.maximum
        shrunk = 0.0 if ends else fractions[-1] / options.fraction_decrease
        fractions.append(shrunk if after > before else fractions[-1])
    # The table has the coupling in it, each entry rounded once.
    options = options._replace(coupling="none")

    def decide(samples: Count) -> ControllerState:
        stage = num_passed(samples, points)
        scale = jnp.asarray(rates, jnp.float32)[stage]
        events: tuple[int | Count, ...] = points
        if lr_cooldown is not None:
            scale = scale * straight(samples, start, end, lr_final)
            events = (*points, start, each_update(samples, start, end))
        return options.decide(
            samples,
            jnp.asarray(sizes, jnp.int32)[stage],
            jnp.asarray(fractions, jnp.float32)[stage],
            lr_scale=scale,
            events=events,
        )

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        del state
        return decide(Count.of(observation.samples))

    return Controller(lambda: decide(Count.of(0)), update, "nothing", (min(sizes), max(sizes)))


def linear_ramp(
    initial: int,
    maximum: int,
    *,
    increment: int,
    over: int,
    lr_coupling: Coupling = "none",
    lr_cooldown: tuple[int, int] | None = None,
    lr_final: float = 0.0,
    adversarial_fraction: float = 0.0,
    fraction_decrease: float = 1.0,
    adversarial_until: int | None = None,
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
) -> Controller:
    """Let the batch grow by the same number of examples again and again, at equal distances.

    Args:
      initial: Examples per update at the start.
      maximum: Examples per update at the end of the ramp.
      increment: By how much the batch grows each time, at least 1; the last time by what is left.
      over: Examples over which it grows, at least one for each growth.
      lr_coupling: How the learning rate follows the batch: ``"none"`` (as in Megatron-LM), ``"sqrt"`` or
        ``"linear"``.
      lr_cooldown: As in ``schedule``.
      lr_final: As in ``schedule``.
      adversarial_fraction: Fraction of each batch to replace by adversarial examples, in [0, 1].
      fraction_decrease: Divides the fraction at each growth, as in ``schedule``.
      adversarial_until: Examples after which the fraction is 0; None for never.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> controller = linear_ramp(100, 250, increment=50, over=3000)
      >>> [int(controller.update(Observation(samples), None).batch_size) for samples in (999, 1000, 2000, 3000)]
      [100, 150, 200, 250]

    References:
      ``--rampup-batch-size`` of Megatron-LM: Narayanan et al. (2021), arXiv:2104.04473.
    """
    if increment < 1:
        raise ValueError(f"`increment` must be at least 1 example, got {increment}.")
    check_batch_sizes(initial, maximum)
    growths = -(-(maximum - initial) // increment)
    if not growths <= over < NEVER:
        raise ValueError(f"`over` must have an example for each of the {growths} growths, got {over}.")
    return schedule(
        [min(initial + increment * growth, maximum) for growth in range(growths + 1)],
        [-(-over * growth // growths) for growth in range(1, growths + 1)],
        lr_coupling=lr_coupling,
        lr_cooldown=lr_cooldown,
        lr_final=lr_final,
        adversarial_fraction=adversarial_fraction,
        fraction_decrease=fraction_decrease,
        adversarial_until=adversarial_until,
        lr_decay_at=lr_decay_at,
        lr_decay=lr_decay,
    )


def straight(samples: Count, start: int, end: int, last: float) -> jax.Array:
    """Return a factor that goes from 1 to its last value in a straight line.

    Args:
      samples: Examples so far.
      start: Examples up to which it is 1.
      end: Examples from which it is ``last``; not below ``start``.
      last: Its last value, at least 0.

    Returns:
      Shape (), float32.
    """
    # Summed from the end, so that the last value is exact.
    left = (Count.of(end) - minimum(where(samples < start, start, samples), end)).to_float()
    return last - rounded(left, abs(last - 1) / max(end - start, 1)) * (1 if last > 1 else -1)


def each_update(samples: Count, start: int, end: int) -> Count:
    """Return the example after this one while a straight line lasts, so that every update asks; else NEVER.

    Args:
      samples: Examples so far.
      start: Examples at which the line begins.
      end: Examples at which it ends.

    Returns:
      The count.
    """
    return where((samples >= start) & (samples < end), samples + 1, NEVER)
