"""Batch size, learning rate and updates by epoch, without training."""

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from hessabs.batch_size.controller import Controller, ControllerState, GradientStatistics, Observation
from hessabs.batch_size.counting import NEVER, Count

Remainder = Literal["drop", "keep", "fill"]
"""What becomes of the examples that fill no micro-batch: left out, trained on, or made a full one."""

Observe = Callable[[int, int], Observation]
"""``observe(samples, measurements before)`` makes the observation that a plan assumes."""


class PlannedEpoch(NamedTuple):
    """An epoch of a plan. All are as they stand when its last micro-batch has been trained on."""

    epoch: int  # from 1
    samples: int  # examples trained on since the start
    batch_size: int
    lr_scale: float  # factor on the learning rate
    adversarial_fraction: float
    updates: float  # since the start; whole in a plan of whole updates
    measurements: int  # since the start


class Plan(NamedTuple):
    """What a rule does in a training run."""

    epochs: tuple[PlannedEpoch, ...]
    updates: int
    measurements: int


def plan(
    controller: Controller,
    *,
    num_examples: int,
    epochs: int,
    micro_batch_size: int | None = None,
    remainder: Remainder = "drop",
    whole_updates: bool = False,
    observe: Observe | None = None,
) -> Plan:
    """Plan a training run.

    The rule is called at the first micro-batch that ends at or after what it asked for. In a plan of whole
    updates a decision then waits until the update at hand is complete, and what is left at the end makes none:
    this is what ``hessabs train`` does, to the update. Otherwise decisions hold at once and an update may be
    counted in parts: this is the arithmetic of the slides' tables,
    ``int(sum over phases of examples / batch size)``.

    Args:
      controller: The rule.
      num_examples: Examples in the training set.
      epochs: Passes over it.
      micro_batch_size: Examples that are handled at once; None for the first batch size.
      remainder: What becomes of the ``num_examples % micro_batch_size`` examples at the end of an epoch:
        ``"drop"`` leaves them out, ``"keep"`` trains on them, ``"fill"`` counts them as a full micro-batch.
      whole_updates: See above.
      observe: What is measured. None assumes that it never changes: an eigenvalue of 1, a gradient without
        noise.

    Returns:
      A ``Plan``.

    Raises:
      ValueError: If a count is below 1, a batch is larger than the data set, or the examples of the run reach
        2**60.

    Example:
      >>> from hessabs.batch_size import batch_growth
      >>> epoch = 50_000 // 128 * 128
      >>> gg = batch_growth(128, 640, lr_decay_at=(30 * epoch, 60 * epoch, 80 * epoch), lr_decay=0.2)
      >>> plan(gg, num_examples=50_000, epochs=90).updates
      16380

    References:
      The tables are those of Yao et al. (2018), arXiv:1810.01021.
    """
    for name, value in (("num_examples", num_examples), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    state = jax.device_get(controller.init())
    size = int(state.batch_size) if micro_batch_size is None else micro_batch_size
    if not 1 <= size <= num_examples:
        raise ValueError(f"A micro-batch must lie in [1, num_examples={num_examples}], got {size}.")
    per_epoch = epoch_examples(num_examples, size, remainder)
    if epochs * per_epoch >= NEVER:
        raise ValueError(f"The examples of a run must stay below 2**60, got {epochs} epochs of {per_epoch}.")
    observe = steady(controller) if observe is None else observe
    update = jax.jit(controller.update)

    batches = -(-per_epoch // size)  # micro-batches in an epoch
    samples, updates, measurements = 0, Fraction(0), 0
    decision, accumulated = state, 0
    rows = []
    for epoch in range(1, epochs + 1):
        start, done = (epoch - 1) * per_epoch, 0
        while done < batches:
            # On to the next call of the rule, the end of an update that a decision waits for, or of the epoch.
            ask = -(-max(int(state.observe_at) - start, 0) // size)
            stop = min(max(ask, done + 1), batches)
            per_update = -(-int(decision.batch_size) // size)
            if whole_updates and decision is not state:
                stop = min(stop, done + per_update - accumulated)
            trained = min(stop * size, per_epoch) - (samples - start)
            if whole_updates:
                complete, accumulated = divmod(accumulated + stop - done, per_update)
                updates += complete
            else:
                updates += Fraction(trained, int(decision.batch_size))
            done, samples = stop, samples + trained
            if done == batches:
                due = int(state.measure) if samples >= int(state.observe_at) else 0
                rows.append(_row(epoch, samples, decision, updates, measurements + due))
            if samples >= int(state.observe_at):
                measuring = bool(state.measure)
                state = jax.device_get(update(observe(samples, measurements), state))
                measurements += measuring
                if int(state.batch_size) > num_examples:
                    raise ValueError(
                        f"The batch size must not exceed the data set, got {int(state.batch_size)} of "
                        f"{num_examples} examples in epoch {epoch}; lower the rule's maximum."
                    )
            if accumulated == 0 or not whole_updates:
                decision = state
    return Plan(tuple(rows), int(updates), measurements)


def epoch_examples(num_examples: int, micro_batch_size: int, remainder: Remainder) -> int:
    """Count the examples of an epoch.

    Args:
      num_examples: Examples in the training set.
      micro_batch_size: Examples that are handled at once.
      remainder: What becomes of those that fill no micro-batch, as in ``plan``.

    Returns:
      The examples that count.

    Raises:
      ValueError: If ``remainder`` is unknown.

    Example:
      >>> [epoch_examples(50_000, 128, remainder) for remainder in ("drop", "keep", "fill")]
      [49920, 50000, 50048]
    """
    if remainder not in get_args(Remainder):
        raise ValueError(f"`remainder` must be one of {list(get_args(Remainder))}, got {remainder!r}.")
    if remainder == "keep":
        return num_examples
    full = num_examples // micro_batch_size
    return micro_batch_size * (full if remainder == "drop" else -(-num_examples // micro_batch_size))


def steady(controller: Controller) -> Observe:
    """Return the observations of a run in which nothing that is measured ever changes.

    Args:
      controller: The rule that will be asked.

    Returns:
      ``observe(samples, count) -> Observation`` of what the rule measures.
    """
    return (
        _silent if controller.measures == "gradient" else lambda samples, count: told_eigenvalue(samples, 1.0)
    )


def told_eigenvalue(samples: int, eigenvalue: float) -> Observation:
    """Return the observation of an eigenvalue after a count of examples, in the dtypes of a training run.

    Args:
      samples: Examples so far.
      eigenvalue: The top eigenvalue.

    Returns:
      The observation.
    """
    return Observation(Count.of(samples), np.float32(eigenvalue))


def _silent(samples: int, count: int) -> Observation:
    return told_gradient(samples, 1.0, 1.0)


def told_gradient(samples: int, mean_square: float, inner_square: float) -> Observation:
    """Return the observation of two parts of 2^20 examples whose mean gradient has norm 1.

    Args:
      samples: Examples so far.
      mean_square: Mean of the squared norms of the two gradients.
      inner_square: Mean of their squared inner products with the mean gradient.

    Returns:
      The observation.
    """
    statistics = GradientStatistics(
        np.int32(1 << 20), np.int32(2), np.float32(mean_square), np.float32(1), np.float32(inner_square)
    )
    return Observation(Count.of(samples), gradient=statistics)


def _row(
    epoch: int, samples: int, decision: ControllerState, updates: Fraction, measurements: int
) -> PlannedEpoch:
    return PlannedEpoch(
        epoch,
        samples,
        int(decision.batch_size),
        float(decision.lr_scale),
        float(decision.adversarial_fraction),
        float(updates),
        measurements,
    )
