"""Batch size, learning rate and updates by epoch, without training."""

from collections.abc import Callable
from fractions import Fraction
from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

from hessabs.batch_size.controller import Controller, GradientStatistics, Observation
from hessabs.batch_size.counting import NEVER, Count
from hessabs.checks import require, require_one_of

Remainder = Literal["drop", "keep", "fill"]
"""What becomes of the examples that fill no micro-batch: left out, trained on, or made a full one."""

Observe = Callable[[int, int], Observation]
"""``observe(samples, measurements before)`` makes the observation that a plan assumes."""


class PlannedEpoch(NamedTuple):
    """An epoch of a plan, as things stand at its last example, or at the end of the whole update with it."""

    epoch: int  # from 1
    samples: int  # examples trained on since the start
    last_update: int  # of these before its last update, whose learning rate is that of a schedule here
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

    In a plan of whole updates the rule is called at the end of the first update that reaches what it asked for,
    what it decides holds from the next one on, and what is left at the end makes no update: this is what
    ``hessabs train`` does, to the update. Otherwise the rule is called at the first micro-batch that reaches
    what it asked for, decisions hold at once and an update may be counted in parts: the arithmetic of the
    slides.

    Args:
      controller: The rule.
      num_examples, epochs: Examples in the training set, and passes over it; at least 1.
      micro_batch_size: Examples that are handled at once; None for the first batch size.
      remainder: What becomes of the ``num_examples % micro_batch_size`` examples at the end of an epoch:
        ``"drop"`` leaves them out, ``"keep"`` trains on them, ``"fill"`` counts them as a full micro-batch.
      whole_updates: See above.
      observe: What is measured. None: an eigenvalue that stays 1, a gradient without noise.

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
    require("be at least 1", num_examples=num_examples, epochs=epochs)
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
    updates, measurements, done, last_update, rows = Fraction(0), 0, 0, 0, list[PlannedEpoch]()
    while done < epochs * batches:
        # On to the next call of the rule or the end of the epoch; with whole updates further to an update's.
        asked, into_epoch = divmod(int(state.observe_at), per_epoch)
        call = asked * batches - (-into_epoch // size)
        stop = max(min(call, (len(rows) + 1) * batches), done + 1)
        if whole_updates:
            per_update = -(-int(state.batch_size) // size)
            complete = -(-(stop - done) // per_update)
            if done + complete * per_update > epochs * batches:  # what is left makes no update
                complete, stop = (epochs * batches - done) // per_update, epochs * batches
                call = NEVER
            else:
                stop = done + complete * per_update
            updates += complete
            if complete:
                last_update = _samples(done + (complete - 1) * per_update, batches, per_epoch, size)
        else:
            trained = _samples(stop, batches, per_epoch, size) - _samples(done, batches, per_epoch, size)
            updates += Fraction(trained, int(state.batch_size))
            last_update = max(_samples(stop, batches, per_epoch, size) - int(state.batch_size), 0)
        done, samples = stop, _samples(stop, batches, per_epoch, size)
        called = done >= call
        while len(rows) < done // batches:
            decided = int(state.batch_size), float(state.lr_scale), float(state.adversarial_fraction)
            counted = measurements + (called and bool(state.measure))
            counts = len(rows) + 1, samples, last_update
            rows.append(PlannedEpoch(*counts, *decided, float(updates), counted))
        if called:
            measuring = bool(state.measure)
            state = jax.device_get(update(observe(samples, measurements), state))
            measurements += measuring
            if int(state.batch_size) > num_examples:
                raise ValueError(
                    f"The batch size must not exceed the data set, got {int(state.batch_size)} of "
                    f"{num_examples} examples in epoch {-(-done // batches)}; lower the rule's maximum."
                )
    return Plan(tuple(rows), int(updates), measurements)


def _samples(micro_batches: int, batches: int, per_epoch: int, size: int) -> int:
    epochs, rest = divmod(micro_batches, batches)
    return epochs * per_epoch + rest * size


def epoch_examples(num_examples: int, micro_batch_size: int, remainder: Remainder) -> int:
    """Count the examples of an epoch that count, by what becomes of those that fill no micro-batch.

    >>> [epoch_examples(50_000, 128, remainder) for remainder in ("drop", "keep", "fill")]
    [49920, 50000, 50048]
    """
    require_one_of(get_args(Remainder), remainder=remainder)
    if remainder == "keep":
        return num_examples
    full = num_examples // micro_batch_size
    return micro_batch_size * (full if remainder == "drop" else -(-num_examples // micro_batch_size))


def steady(controller: Controller) -> Observe:
    """Return the observations of a run in which nothing that is measured ever changes."""
    if controller.measures == "gradient":
        return lambda samples, count: told_gradient(samples, 1.0, 1.0)
    return lambda samples, count: told_eigenvalue(samples, 1.0)


def told_eigenvalue(samples: int, eigenvalue: float) -> Observation:
    """Return the observation of an eigenvalue, in the dtypes of a training run."""
    return Observation(Count.of(samples), np.float32(eigenvalue))


def told_gradient(samples: int, mean_square: float, inner_square: float) -> Observation:
    """Return the observation of two parts of 2^20 examples whose mean gradient has norm 1."""
    squares = np.float32(mean_square), np.float32(1), np.float32(inner_square)
    statistics = GradientStatistics(np.int32(1 << 20), np.int32(2), *squares)
    return Observation(Count.of(samples), gradient=statistics)
