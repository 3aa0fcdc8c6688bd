"""Factors on the learning rate by the examples that a run has seen, whatever its batch did.

A schedule is plain Python of a count of examples. An update has the factor at its first example, so a run of
``total`` examples ends where it should however large its updates are.
"""

import bisect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Literal, NamedTuple, get_args

from hessabs.checks import refuse_unread
from hessabs.training import fields

Schedule = Callable[[int], float]
"""``schedule(examples so far) -> factor`` of the learning rate in the next update."""

Name = Literal["step", "cosine", "linear", "constant", "wsd"]

READ_WITH: dict[str, tuple[Name, ...]] = {
    "lr_end": ("cosine", "linear", "wsd"),
    "decay_fraction": ("wsd",),
    "lr_decay_epochs": ("step",),
    "lr_decay": ("step",),
}
"""Settings that not every schedule reads."""


class ScheduleSettings(NamedTuple):
    """How the learning rate goes; the decays of ``step`` are the rule's, whose batch may grow instead."""

    schedule: Annotated[
        Name,
        "how the learning rate goes: step: it decays after lr_decay_epochs; cosine, linear: it falls to lr_end "
        "at the end of the run; constant; wsd: it stays, and falls linearly in the last part, decay_fraction",
    ] = "step"
    warmup_epochs: Annotated[
        float | None,
        "epochs in which the learning rate rises linearly; default: fb 5, others 0",
        "be at least 0 and finite",
    ] = None
    lr_end: Annotated[
        float, "learning rate at the end over the largest one (cosine, linear, wsd), in [0, 1)", "lie in [0, 1)"
    ] = 0.0
    decay_fraction: Annotated[
        float, "last part of the run, in which the rate falls (wsd), in (0, 1]", "lie in (0, 1]"
    ] = 0.2


def check_schedule(settings: ScheduleSettings, given: Collection[str] = ()) -> None:
    """Check the settings of a schedule; ``given`` as in ``check_optimizer``."""
    fields.check(settings)
    refuse_unread({*given, *fields.changed(settings)}, READ_WITH, schedule=settings.schedule)


def of_settings(settings: ScheduleSettings, *, epochs: int, per_epoch: int) -> Schedule:
    """Make the schedule of a run of so many epochs, of so many examples each."""
    check_schedule(settings)
    return make_schedule(
        settings.schedule,
        total=epochs * per_epoch,
        warmup=round((settings.warmup_epochs or 0) * per_epoch),
        end=settings.lr_end,
        decay_fraction=settings.decay_fraction,
    )


def make_schedule(
    name: Name,
    *,
    total: int,
    warmup: int = 0,
    decay_at: Sequence[int] = (),
    decay: float = 0.2,
    end: float = 0.0,
    decay_fraction: float = 0.2,
) -> Schedule:
    """Make a schedule.

    Args:
      name: ``step``, ``cosine``, ``linear``, ``constant`` or ``wsd`` (warm-up, stable, decay).
      total: Examples of the run; beyond them the factor stays.
      warmup: Examples in which the factor rises linearly, the example number i (from 1) having i / ``warmup``.
      decay_at: Examples after which the factor is multiplied by ``decay`` (step), ascending.
      decay: Factor of each decay, in (0, 1].
      end: The factor at ``total`` (cosine, linear, wsd), in [0, 1).
      decay_fraction: The last part of ``total``, in which the factor falls linearly (wsd), in (0, 1].

    Raises:
      ValueError: If the name is unknown, a value is out of range, or the warm-up ends after the fall begins.

    Example:
      >>> schedule = make_schedule("wsd", total=1000, warmup=100, decay_fraction=0.5)
      >>> [schedule(samples) for samples in (0, 49, 100, 500, 750, 1000)]
      [0.01, 0.5, 1.0, 1.0, 0.5, 0.0]

    References:
      Loshchilov, Hutter (2017), arXiv:1608.03983 (cosine); Hu et al. (2024), arXiv:2404.06395 (wsd).
    """
    if name not in get_args(Name):
        known = ", ".join(get_args(Name))
        raise ValueError(f"`name` must be one of {known}, got {name!r}{fields.nearest(name, get_args(Name))}.")
    if list(decay_at) != sorted(set(decay_at)) or any(at <= 0 for at in decay_at):
        raise ValueError(f"`decay_at` must be positive and ascending, got {tuple(decay_at)}.")
    if not (0 < decay <= 1 and 0 <= end < 1 and 0 < decay_fraction <= 1):
        raise ValueError(
            "`decay` and `decay_fraction` must lie in (0, 1] and `end` in [0, 1), got "
            f"{decay}, {decay_fraction} and {end}."
        )
    fall = {"cosine": warmup, "linear": warmup, "wsd": round(total * (1 - decay_fraction))}.get(name, total)
    if not 0 <= warmup <= fall or (warmup >= total and name in ("cosine", "linear")):
        raise ValueError(
            f"`warmup` must be at least 0 and end before the run of {total} examples"
            f"{f' falls, at {fall}' if name == 'wsd' else ' does'}, got {warmup}."
        )

    def after_warmup(samples: int) -> float:
        if name == "step":
            return decay ** bisect.bisect_right(decay_at, samples)
        if name == "constant" or samples <= fall:
            return 1.0
        part = min((samples - fall) / (total - fall), 1.0)
        left = (1 + math.cos(math.pi * part)) / 2 if name == "cosine" else 1 - part
        return end + (1 - end) * left

    def schedule(samples: int) -> float:
        rising = min((samples + 1) / warmup, 1.0) if warmup else 1.0
        return rising * after_warmup(samples)

    return schedule
