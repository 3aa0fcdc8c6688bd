"""Batch sizes that are known beforehand: one, any table of them, and the linear ramp of language models."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from hessabs.batch_size.checks import require_events, require_sizes
from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import NEVER, Count, minimum, num_passed, where
from hessabs.batch_size.rule import Coupling, Decision, Rate, Rule, make_controller, with_coupling
from hessabs.batch_size.sizes import rounded
from hessabs.checks import require


def schedule(
    sizes: Sequence[int],
    at: Sequence[int],
    *,
    lr_scales: Sequence[float] | None = None,
    lr_cooldown: tuple[int, int] | None = None,
    lr_final: float = 0.0,
) -> Controller:
    """Take batch sizes from a table: any sizes, at any times, growing or falling.

    Args:
      sizes: Examples per update, each at least 1, in the order of time.
      at: Examples after which the next of them begins, positive and ascending, one less than ``sizes``.
      lr_scales: Factor on the learning rate with each size, beside the coupling (linear); None for 1.
      lr_cooldown: Examples from which and to which the learning rate falls in a straight line; the rule then
        wants to be called at every update. None for no cool-down.
      lr_final: What is left of the learning rate after the cool-down, in [0, 1].

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import with_coupling
      >>> controller = with_coupling(schedule([100, 130, 250], at=[10**12, 3 * 10**12]), "sqrt")
      >>> state = controller.update(Observation(10**12), controller.init())
      >>> int(state.batch_size), round(float(state.lr_scale) ** 2, 6), int(state.observe_at)
      (130, 1.3, 3000000000000)
    """
    points = require_events(at=at)
    if len(sizes) != len(points) + 1 or min(sizes) < 1 or any(size != int(size) for size in sizes):
        raise ValueError(
            "`sizes` must be batch sizes, whole numbers of at least 1, one more of them than `at` has times, "
            f"got {tuple(sizes)} for {points}."
        )
    own = [1.0] * len(sizes) if lr_scales is None else list(lr_scales)
    if len(own) != len(sizes) or not all(0 <= rate < float("inf") for rate in own):
        raise ValueError(f"`lr_scales` must be a factor of at least 0 for each of {tuple(sizes)}, got {own}.")
    start, end = (NEVER, NEVER) if lr_cooldown is None else lr_cooldown
    if lr_cooldown is not None and not 0 <= start < end < NEVER:
        raise ValueError(f"`lr_cooldown` must be two ascending counts of examples, got {lr_cooldown}.")
    require("lie in [0, 1]", lr_final=lr_final)

    growths = [0.0]
    for before, after in itertools.pairwise(sizes):
        last = growths[-1] + 1 if after < max(sizes) else math.inf  # the largest ends adversarial examples
        growths.append(last if after > before else growths[-1])

    def decide(samples: Count, rate: Rate) -> Decision:
        stage = num_passed(samples, points)
        # Each entry is rounded once.
        rates = [rate.of_ratio(size / sizes[0]) * own[i] for i, size in enumerate(sizes)]
        scale = jnp.asarray(rates, jnp.float32)[stage]
        events: tuple[int | Count, ...] = points
        if lr_cooldown is not None:
            scale = scale * straight(samples, start, end, lr_final)
            events = (*points, start, each_update(samples, start, end))
        batch_size = jnp.asarray(sizes, jnp.int32)[stage]
        return Decision(batch_size, scale, events=events, growths=(growths, stage))

    return by_examples(decide, (min(sizes), max(sizes)))


def constant(batch_size: int) -> Controller:
    """Keep one batch size: the baseline (BL) of the slides.

    Args:
      batch_size: Examples per update, at least 1.

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If the batch size is below 1.

    Example:
      >>> int(constant(128).init().batch_size)
      128

    References:
      Yao et al. (2018), arXiv:1810.01021, section 4.
    """
    require_sizes(batch_size, batch_size)
    return schedule((batch_size,), ())


def linear_scaling(batch_size: int, *, base_batch_size: int, warmup: int) -> Controller:
    """Keep one large batch and scale the learning rate with it, after a gradual warm-up (FB).

    The factor on the learning rate is ``1 + (batch_size / base_batch_size - 1) * min(samples / warmup, 1)``;
    ``with_coupling`` makes it rise to the square root of the ratio, or not at all.

    Args:
      batch_size: Examples per update, at least 1.
      base_batch_size: The batch that the learning rate was chosen for, at least 1.
      warmup: Examples over which the rate rises, at least 0. In the paper, 5 epochs.

    Returns:
      A ``Controller``. During the warm-up it wants to be called at every update.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> controller = linear_scaling(512, base_batch_size=128, warmup=1024)
      >>> state = controller.init()
      >>> [float(controller.update(Observation(samples), state).lr_scale) for samples in (0, 512, 1024)]
      [1.0, 2.5, 4.0]

    References:
      Goyal et al. (2017), arXiv:1706.02677, sections 2.1 and 2.2.
    """
    require("be at least 1", base_batch_size=base_batch_size)
    require("be at least 0 examples", warmup=warmup)

    def decide(samples: Count, rate: Rate) -> Decision:
        scale = straight(samples, 0, warmup, rate.of_ratio(batch_size / base_batch_size))
        return Decision(jnp.int32(batch_size), scale, events=(each_update(samples, 0, warmup),))

    return by_examples(decide, (batch_size, batch_size))


def linear_ramp(
    initial: int,
    maximum: int,
    *,
    increment: int,
    over: int,
    lr_cooldown: tuple[int, int] | None = None,
    lr_final: float = 0.0,
) -> Controller:
    """Let the batch grow by the same number of examples again and again, at equal distances.

    The learning rate does not follow the batch (as in Megatron-LM), see ``with_coupling``.

    Args:
      initial, maximum: Examples per update at the start, and at the end of the ramp.
      increment: By how much the batch grows each time, at least 1; the last time by what is left.
      over: Examples over which it grows, at least one for each growth.
      lr_cooldown, lr_final: As in ``schedule``.

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
    require("be at least 1 example", increment=increment)
    require_sizes(initial, maximum)
    growths = -(-(maximum - initial) // increment)
    if not growths <= over < NEVER:
        raise ValueError(f"`over` must have an example for each of the {growths} growths, got {over}.")
    sizes = [min(initial + increment * growth, maximum) for growth in range(growths + 1)]
    times = [-(-over * growth // growths) for growth in range(1, growths + 1)]
    return with_coupling(schedule(sizes, times, lr_cooldown=lr_cooldown, lr_final=lr_final), "none")


def straight(samples: Count, start: int, end: int, last: float) -> jax.Array:
    """Return a factor that goes from 1 at ``start`` examples to ``last`` at ``end`` in a straight line."""
    # Summed from the end, so that the last value is exact.
    left = (Count.of(end) - minimum(where(samples < start, start, samples), end)).to_float()
    return last - rounded(left, abs(last - 1) / max(end - start, 1)) * (1 if last > 1 else -1)


def each_update(samples: Count, start: int, end: int) -> Count:
    """Return the example after this one while a straight line lasts, so that every update asks; else NEVER."""
    return where((samples >= start) & (samples < end), samples + 1, NEVER)


def by_examples(
    decide: Callable[[Count, Rate], Decision], batch_sizes: tuple[int, int], coupling: Coupling = "linear"
) -> Controller:
    """Make the controller of a rule whose decisions depend on the count of examples and on nothing else."""

    def update(observation: Observation, state: ControllerState, rate: Rate) -> Decision:
        del state
        return decide(Count.of(observation.samples), rate)

    return make_controller(Rule(lambda rate: decide(Count.of(0), rate), update, batch_sizes), coupling)
