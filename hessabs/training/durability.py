"""What a run does so that it cannot be lost: one field, one flag of ``hessabs train``."""

import re
from typing import Annotated, Literal, NamedTuple

from hessabs.training import fields

_PERIOD = re.compile(r"(\d+(?:\.\d+)?)(updates|samples|min|epochs)")
_ROUNDING = 1e-9  # of a sum of epochs


class Durability(NamedTuple):
    """How a run is saved, and what it does with what was saved."""

    resume: Annotated[
        bool,
        "go on where workdir's last good checkpoint is; starts anew where there is none, and says so where the "
        "run has finished: a job script may always pass it",
    ] = False
    checkpoint_every: Annotated[
        str, "time between checkpoints: a number and one of updates, samples, min, epochs, such as 100updates"
    ] = "10min"
    keep_checkpoints: Annotated[
        int,
        "latest checkpoints to keep, and with them the one of the best test accuracy among those at the end of "
        "an epoch",
        "be at least 1",
    ] = 2
    on_nan: Annotated[
        Literal["stop", "rewind"],
        "a loss or params that are not finite: stop, or rewind to the last checkpoint and drop the batch of "
        "that update (noted in events.jsonl; the run stops at the sixth time)",
    ] = "stop"


class Marks(NamedTuple):
    """How far a run is, in each of the units that a period may have."""

    updates: float
    samples: float
    min: float  # of this process
    epochs: float  # fractions of one, too


class Period(NamedTuple):
    """A distance between two checkpoints."""

    number: float
    unit: str  # a field of Marks

    def has_passed(self, now: Marks, last: Marks) -> bool:
        """Say whether the next checkpoint is due."""
        passed, before = getattr(now, self.unit), getattr(last, self.unit)
        if self.unit == "epochs":  # updates run on across the ends of epochs: the first beyond each multiple
            return (passed + _ROUNDING) // self.number > (before + _ROUNDING) // self.number
        return passed - before >= self.number


def parse_period(text: str) -> Period:
    """Read a period such as ``100updates``, ``50000samples``, ``10min`` or ``1epochs``.

    Example:
      >>> parse_period("50000samples")
      Period(number=50000.0, unit='samples')
    """
    match = _PERIOD.fullmatch(text.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(
            "`checkpoint_every` must be a positive number and one of updates, samples, min, epochs, such as "
            f"100updates or 10min, got {text!r}."
        )
    return Period(float(match[1]), match[2])


def check(durability: Durability) -> None:
    """Check the fields: a ValueError in one line, what was got and what to do."""
    fields.check(durability)
    parse_period(durability.checkpoint_every)
