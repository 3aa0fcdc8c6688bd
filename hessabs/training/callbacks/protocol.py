"""What a callback is told, and what happens where one raises."""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Callback = Callable[[str, Mapping[str, Any]], None]
"""``callback(event, record)``, in the first process of a run. The events and what their records hold:

* ``"start"``: ``workdir``, ``settings``, ``samples`` (0, or where a run goes on) and ``records``, those of the
  epochs before that;
* ``"epoch"``: the record of an epoch, as in ``metrics.jsonl``;
* ``"decision"``: ``samples``, ``updates``; ``batch_size``, ``lr``, ``adversarial_fraction`` from now on; the
  ``eigenvalue`` and ``residual`` that were measured;
* ``"end"``: the summary. A run that is interrupted has none.

A run that goes on tells again of all that came after ``samples``.
"""


class CallbackError(RuntimeError):
    """A callback has raised; the run was saved before, where it saves at all."""


class Named(NamedTuple):
    """A callback and what the user calls it."""

    name: str
    function: Callback

    def __call__(self, event: str, record: Mapping[str, Any]) -> None:
        self.function(event, record)


def call_all(
    callbacks: Sequence[Callback], event: str, record: Mapping[str, Any], save: Callable[[], None]
) -> None:
    """Tell every callback, each with a copy of the record; if one raises, save and raise ``CallbackError``."""
    for callback in callbacks:
        try:
            callback(event, dict(record))
        except Exception as error:
            save()
            own = getattr(callback, "__qualname__", type(callback).__qualname__)
            name = callback.name if isinstance(callback, Named) else own
            raise CallbackError(
                f"The callback {name} raised {type(error).__name__} at the event {event!r}: {error}"
            ) from error


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """List the finite numbers of a record, nested ones as ``"outer/inner"``.

    Example:
      >>> dict(scalars({"epoch": 1, "seconds": {"step": 0.5}, "eigenvalue": None, "name": "absa"}))
      {'epoch': 1.0, 'seconds/step': 0.5}
    """
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{prefix}{key}/")
        elif isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
            yield prefix + key, float(value)
