"""Functions that are told of a run while it trains, ``callback(event, record)``: by name, or the user's own."""

import copy
import json
import math
import numbers
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from hessabs.training import files
from hessabs.training.factories import call_factory, load_factory
from hessabs.training.fields import is_factory, nearest

__all__ = ["Callback", "CallbackError", "CallbackSettings", "call_all", "make_callbacks"]

Callback = Callable[[str, Mapping[str, Any]], None]
"""``callback(event, record)``, in the first process of a run. The events and what their records hold:

* ``"start"``: ``workdir``, ``settings``, ``samples`` (0, or where a run goes on) and ``records``, those of the
  epochs before that;
* ``"epoch"``: the record of an epoch, as in ``metrics.jsonl``;
* ``"decision"``: ``samples``, ``updates``; ``batch_size``, ``lr``, ``adversarial_fraction`` from now on; the
  ``eigenvalue`` and ``residual`` that were measured;
* ``"end"``: the summary. A run that is interrupted has none.

A run that goes on tells again of all that came after ``samples``. To end one early, raise: it is saved before,
where it saves at all.
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
    """Tell every callback, each with a copy of the record; if one raises, save and raise ``CallbackError``, or
    what it raised where that is to end the process.
    """
    for callback in callbacks:
        try:
            callback(event, copy.deepcopy(dict(record)))
        except BaseException as error:
            save()
            if not isinstance(error, Exception):  # SystemExit, Ctrl-C
                raise
            own = getattr(callback, "__qualname__", type(callback).__qualname__)
            name = callback.name if isinstance(callback, Named) else own
            raise CallbackError(
                f"The callback {name} raised {type(error).__name__} at the event {event!r}: {error}"
            ) from error


class CallbackSettings(NamedTuple):
    """Who is told of a run."""

    callbacks: Annotated[
        tuple[str, ...],
        "told of every epoch and every decision, comma-separated: csv: metrics.csv in workdir; tensorboard: "
        "event files in workdir/tensorboard; wandb: Weights & Biases, where installed; FILE.py:factory: called "
        "as factory(), returns a function of (event, record)",
    ] = ()


def make_callbacks(names: Sequence[str], workdir: pathlib.Path) -> list[Callback]:
    """Make the callbacks of a run; nothing is written before its start."""
    result: list[Any] = []
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"`callbacks` must name each once, got {name!r} twice.")
        if is_factory(name):
            made = call_factory(load_factory(name), callable, "a function of (event, record)")
        elif name in _MAKERS:
            made = _MAKERS[name](workdir)
        else:
            known = f"{', '.join(_MAKERS)} or FILE.py:factory"
            raise ValueError(f"`callbacks` must be {known}, got {name!r}{nearest(name, _MAKERS)}.")
        result.append(Named(name, made))
    return result


def csv(workdir: pathlib.Path) -> Callback:
    """Write ``metrics.csv``: a line for each epoch. At the start it becomes that of the epochs so far."""
    rows: list[dict[str, Any]] = []

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event in ("start", "epoch"):
            if event == "start":
                rows.clear()
            records = record["records"] if event == "start" else [record]
            rows.extend({name: _cell(value) for name, value in each.items()} for each in records)
            # Whole, so that a kill leaves no half a line, and a new column has a place.
            files.write_csv(workdir / "metrics.csv", rows)

    return callback


def tensorboard(workdir: pathlib.Path) -> Callback:
    """Write event files into ``workdir/tensorboard``; a step is an example.

    Where a run goes on, TensorBoard is told to forget what came after that: it will be told again.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "The callback tensorboard needs tensorboardX: install the extra `hessabs[train]`."
        ) from error
    writers: list[Any] = []

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event == "start":
            samples = record["samples"]
            options = {"purge_step": samples + 1 if samples else 0, "flush_secs": 1}
            suffix = f".{samples}"  # two of one second are two files
            writers[:] = [SummaryWriter(str(workdir / "tensorboard"), filename_suffix=suffix, **options)]
        elif event == "end":
            writers.pop().close()
        else:
            prefix = "decision/" if event == "decision" else ""
            for name, value in scalars(record, prefix):
                writers[0].add_scalar(name, value, record["samples"])

    return callback


def wandb(workdir: pathlib.Path) -> Callback:
    """Log a run to Weights & Biases, its horizontal axis the examples; the environment of ``wandb`` holds.

    Where a run goes on, so does that of Weights & Biases, whose name is in ``workdir/wandb.json``. It cannot
    forget, but what a run tells again is the same: it is left out up to what was logged.
    """
    try:
        import wandb as package
    except ImportError as error:
        raise ImportError("The callback wandb needs Weights & Biases: pip install wandb.") from error
    path, logged = workdir / "wandb.json", [-1]
    runs: list[Any] = []

    def start(record: Mapping[str, Any]) -> None:
        goes_on = record["samples"] and path.exists()
        name = str(json.loads(path.read_text())["id"]) if goes_on else None
        run = package.init(
            dir=str(workdir), id=name, resume="allow" if name else None, config=dict(record["settings"])
        )
        run.define_metric("*", step_metric="samples")
        path.write_text(json.dumps({"id": run.id}) + "\n")
        runs[:], logged[:] = [run], [run.summary.get("samples", -1) if name else -1]

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event == "start":
            start(record)
        elif event == "end":
            runs[0].summary.update(dict(record))
            runs.pop().finish()
        elif record["samples"] > logged[0]:
            prefix = "decision/" if event == "decision" else ""
            runs[0].log({**dict(scalars(record, prefix)), "samples": record["samples"]})

    return callback


_MAKERS = {"csv": csv, "tensorboard": tensorboard, "wandb": wandb}


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


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value)
    return "" if isinstance(value, float) and not math.isfinite(value) else value  # as of a run that goes on
