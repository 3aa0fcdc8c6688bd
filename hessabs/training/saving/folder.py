"""The folder of a run: its lock, its lines, its checkpoints. Process 0 alone calls what is here."""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hessabs.training import metrics
from hessabs.training.devices.regroup import regroup
from hessabs.training.finite import NonFiniteError
from hessabs.training.loop_state import Drop, LoopState
from hessabs.training.metrics import say
from hessabs.training.saving import contradictions
from hessabs.training.saving.durability import Durability
from hessabs.training.saving.lock import lock_workdir
from hessabs.training.saving.manifest import DamagedError
from hessabs.training.saving.rewinds import MOST_REWINDS, dropped, next_event
from hessabs.training.saving.snapshot import Snapshot, restore, templates
from hessabs.training.setup import Run

if TYPE_CHECKING:
    from hessabs.training.saving.store import Saved, Store

_FORMAT = 1


class Found(NamedTuple):
    """A checkpoint that was read."""

    arrays: dict[str, np.ndarray]  # as ``templates`` of this run
    record: dict[str, Any]  # with the batches that later events drop
    snapshot: Snapshot


class Folder:
    """The folder of a run. A class, against the house rule: a handle on files.

    Args:
      workdir: The folder.
      run: The run.
      options: How it is saved; None makes no checkpoints.
      like: A state of the run.
    """

    def __init__(self, workdir: pathlib.Path, run: Run, options: Durability | None, like: LoopState) -> None:
        self._workdir, self._run, self._options, self._like = workdir, run, options, like
        self._store: Store | None = None
        self._exit = contextlib.ExitStack()

    def open(self) -> None:
        """Lock the folder; nothing else may be called before.

        Raises:
          BlockingIOError: If another process runs there, naming it.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_workdir(self._workdir))
            if self._options is not None:
                from hessabs.training.saving.store import Store  # orbax takes a while to import

                self._store = Store(self._workdir / metrics.CHECKPOINTS, self._options.keep_checkpoints)
            self._exit = stack.pop_all()

    def close(self) -> None:
        """Wait until all is on disk, and unlock the folder.

        Raises:
          OSError: If a checkpoint could not be written.
        """
        with self._exit:
            if self._store is not None:
                self._store.close()

    @property
    def store(self) -> "Store":
        """Its checkpoints."""
        assert self._store is not None
        return self._store

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of the run that it holds, if that has finished and is to have no more epochs.

        Raises:
          ValueError: If it is another run.
        """
        path = self._workdir / metrics.SUMMARY
        if not path.exists():
            return None
        summary: dict[str, Any] = json.loads(path.read_text())
        contradictions.refuse_contradictions({"config": summary}, self._run)
        if summary["epochs"] < self._run.config.epochs:
            say(f"the run in {self._workdir} has finished; going on to epoch {self._run.config.epochs}.")
            return None
        say(f"the run in {self._workdir} has finished; nothing is left to do.")
        return summary

    def start_anew(self) -> None:
        """Remove what an earlier run left."""
        metrics.start_workdir(self._workdir)

    def find(self) -> Found | None:
        """Read where the run that it holds is to go on, if there is a checkpoint, and go back to it.

        Raises:
          FileNotFoundError: If it holds a finished run, by an older version, that left no checkpoint.
          ValueError: If the checkpoint is that of another run, or there are checkpoints and none is whole.
        """
        metrics.refuse_links(self._workdir)
        found = self._latest()
        if found is not None:
            position, samples = found.snapshot.state.position, found.snapshot.state.samples
            say(f"going on after {samples} examples (epoch {position.epoch + 1}).")
        elif (self._workdir / metrics.SUMMARY).exists():
            raise FileNotFoundError(
                f"The finished run in {self._workdir} left no checkpoint to go on from; pass --overwrite to "
                "train anew, or its own --epochs."
            )
        elif (self._workdir / metrics.METRICS).exists():
            say("there is no checkpoint to go on from; starting anew.")
        return found

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of an epoch."""
        metrics.append_line(self._workdir / metrics.METRICS, record)

    def save(
        self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any], accuracy: Mapping[int, float]
    ) -> None:
        """Begin to write a checkpoint.

        Args:
          arrays: Its arrays.
          record: What else ``restore`` needs.
          accuracy: As for ``Store.save``.

        Raises:
          OSError: If an earlier one could not be written.
        """
        whole = {
            "format": _FORMAT,
            **contradictions.describe(self._run),
            "devices": self._run.devices,
            **record,
            "events": len(self._events()),
        }
        self.store.save(int(record["samples"]), arrays, whole, accuracy)

    def rewind(self, error: NonFiniteError) -> Found | None:
        """Note that the batch of an update is to be dropped, and read the last checkpoint.

        Args:
          error: What happened. If it happens again there, more batches are dropped, from before it on.

        Returns:
          Where to go on.

        Raises:
          FloatingPointError: If the run was rewound too often.
        """
        events = self._events()
        if len(events) >= MOST_REWINDS:
            raise FloatingPointError(f"{error} It was rewound {MOST_REWINDS} times: that is enough.") from error
        self.store.wait()
        metrics.write_lines(self._workdir / metrics.EVENTS, [*events, next_event(events, error.update)])
        found = self._latest()
        if found is not None:
            say(f"{error} Rewinding to {found.snapshot.state.samples} examples, see {metrics.EVENTS}.")
        return found

    def _latest(self) -> Found | None:
        found = self.store.latest(self._read)
        if found is not None:
            metrics.write_lines(self._workdir / metrics.METRICS, found.snapshot.records)
        return found

    def _read(self, saved: "Saved") -> Found:
        if saved.record.get("format") != _FORMAT:
            raise DamagedError(f"record: its format is {saved.record.get('format')!r} and not {_FORMAT}")
        try:
            contradictions.refuse_contradictions(saved.record, self._run)
            now, then = self._run.devices, int(saved.record["devices"])
            arrays = saved.read_arrays(templates(self._like, now, then))
            arrays = {
                name: regroup(name, array, now, then, dealt=self._run.dealt) for name, array in arrays.items()
            }
            pending = [Drop(int(update), int(batches)) for update, batches in saved.record["drops"]]
            unknown = self._events()[int(saved.record["events"]) :]
            drops = dropped(pending, unknown, int(saved.record["updates"]))
            record = {**saved.record, "drops": [list(drop) for drop in drops]}
            return Found(arrays, record, restore(self._like, arrays, record))
        except (KeyError, TypeError, IndexError) as error:
            raise DamagedError(f"record: {type(error).__name__} {error}") from error

    def _events(self) -> list[dict[str, Any]]:
        path = self._workdir / metrics.EVENTS
        return metrics.read_lines(path) if path.exists() else []
