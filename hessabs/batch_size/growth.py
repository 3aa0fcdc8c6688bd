"""Batches that grow at given times: where the rate would fall, and as ABS would without its measurements."""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from hessabs.batch_size.checks import require_events, require_sizes
from hessabs.batch_size.controller import Controller
from hessabs.batch_size.counting import NEVER
from hessabs.batch_size.rule import with_coupling
from hessabs.batch_size.sizes import ladder
from hessabs.batch_size.table import schedule
from hessabs.checks import require, require_one_of

Leftover = Literal["decay", "hold"]
_GRID = 4096  # places at which a schedule is looked at before a fall is found exactly


def batch_growth(
    initial: int,
    maximum: int,
    *,
    lr_decay_at: Sequence[int],
    lr_decay: float = 0.2,
    growth_factor: float | None = None,
    leftover: Leftover = "decay",
) -> Controller:
    """Grow the batch where the learning rate would have decayed (GG).

    At each decay point the batch is multiplied by ``growth_factor``, up to the maximum, and the learning rate
    stays; it takes what the maximum keeps the batch from taking. It does not follow the batch besides (as in
    the paper), see ``with_coupling``.

    Args:
      initial, maximum: As in ``timer``.
      lr_decay_at: Examples after which the learning rate would decay, ascending.
      lr_decay: The factor that it would decay by, in (0, 1].
      growth_factor: Growth of the batch at each point, above 1; None for ``1 / lr_decay``. (The slides raise it
        to ``ceil(sqrt(maximum / initial))`` where two decays would not reach the maximum.)
      leftover: ``"decay"`` as above (Smith et al.), or ``"hold"``: the learning rate never changes.

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import Observation
      >>> controller = batch_growth(128, 640, lr_decay_at=(1000, 2000), lr_decay=0.2)
      >>> states = [controller.update(Observation(samples), None) for samples in (1000, 2000)]
      >>> [(int(state.batch_size), round(float(state.lr_scale), 6)) for state in states]
      [(640, 1.0), (640, 0.2)]

    References:
      Smith et al. (2017), arXiv:1711.00489.
    """
    require_sizes(initial, maximum)
    require_events(lr_decay_at=lr_decay_at)
    require("lie in (0, 1]", lr_decay=lr_decay)
    factor = inverse(lr_decay) if growth_factor is None else growth_factor
    require("be above 1", growth_factor=factor)
    require_one_of(get_args(Leftover), leftover=leftover)

    sizes = ladder(initial, maximum, factor, growths=len(lr_decay_at))
    rates = [size / initial / factor**points for points, size in enumerate(sizes)]
    rule = schedule(sizes, lr_decay_at, lr_scales=rates if leftover == "decay" else None)
    return with_coupling(rule, "none")


def inverse(lr_decay: float) -> float:
    """Return the growth that a decay stands for: 1 / 0.2 is 5, and not a neighbour that rounding makes 4."""
    return round(1 / lr_decay, 9)


def seesaw(
    initial: int,
    maximum: int,
    *,
    lr_schedule: Callable[[int], float],
    total: int,
    growth_factor: float = 2.0,
) -> Controller:
    """Grow the batch as a schedule lets the learning rate fall, and let the rate fall by less.

    Where the schedule has fallen to a part s of its largest value the batch is the step of growth nearest to
    ``initial / s``. The rate is the schedule's times what the coupling gives for the batch: with the square
    root (Adam's kind) it falls as the square root of s, with ``"linear"`` (SGD) it stays; once the batch is at
    its maximum, the rate falls as the schedule does. The updates are about those of the first batch times the
    mean of the schedule (half for a linear or cosine decay to zero; 0.53 in doublings), more where the maximum
    is soon reached. It is no licence to begin beyond the critical batch size.

    Args:
      initial, maximum, growth_factor: As in ``timer``.
      lr_schedule: ``lr_schedule(examples so far) -> factor`` that the learning rate is multiplied by elsewhere
        (an outer schedule, ``training.make_schedule``); it must fall in the end.
      total: Examples of the run, at least 1.

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range, or the schedule never falls far enough for a growth.

    Example:
      >>> from hessabs.batch_size import Observation, with_coupling
      >>> rule = seesaw(64, 1024, lr_schedule=lambda samples: 1 - samples / 1000, total=1000)
      >>> rule = with_coupling(rule, "sqrt")
      >>> [int(rule.update(Observation(samples), None).batch_size) for samples in (0, 300, 700, 900)]
      [64, 128, 256, 512]

    References:
      Meterez et al. (2025), arXiv:2510.14717; for SGD Smith et al. (2017), arXiv:1711.00489. Differs from the
      paper: a growth comes where the batch is nearest to what the schedule asks for, half a step earlier, so
      that the mean of the logarithms is right.
    """
    table = growths(initial, maximum, lr_schedule=lr_schedule, total=total, growth_factor=growth_factor)
    if len(table) == 1 and initial < maximum:
        least = math.sqrt(initial / ladder(initial, maximum, growth_factor)[1])
        raise ValueError(
            f"`lr_schedule` must fall far enough for a growth, to {least:.3g} of its largest value, got "
            f"{lr_schedule(total) / max(_factors(lr_schedule, total).values()):.3g} of it at the end; cosine, "
            "linear and wsd fall (`--schedule` of the commands)."
        )
    return schedule(list(table.values()), list(table)[1:])


def growths(
    initial: int,
    maximum: int,
    *,
    lr_schedule: Callable[[int], float],
    total: int,
    growth_factor: float,
) -> dict[int, int]:
    """Return the batch sizes of ``seesaw`` by the examples from which they hold, with the first at 0."""
    require_sizes(initial, maximum)
    require("be above 1", growth_factor=growth_factor)
    require("be at least 1 example", total=total)
    factors = _factors(lr_schedule, total)
    largest = max(factors.values())
    if not (math.isfinite(largest) and largest > 0 and min(factors.values()) >= 0):
        raise ValueError(
            "`lr_schedule` must give finite factors of at least 0, one of them above 0, got "
            f"{min(factors.values())} to {largest}."
        )

    grid = list(factors)
    table = {0: initial}  # where the rate falls by several steps at once, the batch grows by all of them
    for before, after in itertools.pairwise(ladder(initial, maximum, growth_factor)):
        least = largest * initial / math.sqrt(before * after)
        last = max(i for i, samples in enumerate(grid) if factors[samples] > least)
        if last == len(grid) - 1:
            break  # it ends above
        between = range(grid[last], grid[last + 1] + 1)
        table[between[bisect.bisect_left(between, -least, key=lambda samples: -lr_schedule(samples))]] = after
    return table


def peak(lr_schedule: Callable[[int], float], total: int) -> int:
    """Return about how many examples a schedule takes to rise to its largest value: the length of a warm-up."""
    factors = _factors(lr_schedule, total)
    return max(factors, key=lambda samples: factors[samples])


def _factors(lr_schedule: Callable[[int], float], total: int) -> dict[int, float]:
    grid = sorted({round(total * part / _GRID) for part in range(_GRID + 1)})
    return {samples: lr_schedule(samples) for samples in grid}


def fixed_growth(
    initial: int, maximum: int, *, grow_at: Sequence[int], growth_factor: float = 2.0
) -> Controller:
    """Grow batch and learning rate at given times: ABS with its measurements taken away.

    Args:
      initial, maximum, growth_factor: As in ``timer``.
      grow_at: Examples after which the batch grows, positive and ascending.

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import Observation
      >>> controller = fixed_growth(128, 512, grow_at=(1000, 3000))
      >>> state = controller.update(Observation(1000), controller.init())
      >>> int(state.batch_size), float(state.lr_scale)
      (256, 2.0)

    References:
      An ablation of Yao et al. (2018), arXiv:1810.01021.
    """
    require_sizes(initial, maximum)
    points = require_events(grow_at=grow_at)
    require("be above 1", growth_factor=growth_factor)
    return schedule(ladder(initial, maximum, growth_factor, growths=len(points)), points)


def timer(initial: int, maximum: int, *, every: int, growth_factor: float = 2.0) -> Controller:
    """Grow batch and learning rate every so often: the patience of ABS, without an eigenvalue.

    Args:
      initial: Examples per update at the start, at least 1.
      maximum: The most examples per update. A batch below it is a multiple of ``initial``.
      every: Examples between growths (kappa * n of ABS), at least 1.
      growth_factor: Growth of the batch, above 1.

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import Observation
      >>> controller = timer(128, 512, every=1000)
      >>> state = controller.update(Observation(2000), controller.init())
      >>> int(state.batch_size), float(state.lr_scale)
      (512, 4.0)

    References:
      An ablation of Yao et al. (2018), arXiv:1810.01021.
    """
    require("be at least 1 example", every=every)
    require("be above 1", growth_factor=growth_factor)
    require_sizes(initial, maximum)
    sizes = ladder(initial, maximum, growth_factor)
    times = [every * count for count in range(1, len(sizes)) if every * count < NEVER]
    return schedule(sizes[: len(times) + 1], times)
