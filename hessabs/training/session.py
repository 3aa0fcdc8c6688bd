"""The folder of a run while it runs: its lock, its lines, its checkpoints, and the ways back to them."""

import contextlib
import json
import pathlib
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from hessabs.training import contradictions, durability, metrics
from hessabs.training.durability import Durability, Marks
from hessabs.training.finite import NonFiniteError, check_loss, check_params
from hessabs.training.interruption import Interrupted, Wish, catch_signals
from hessabs.training.lock import lock_workdir
from hessabs.training.loop_state import start
from hessabs.training.manifest import DamagedError
from hessabs.training.regroup import regroup
from hessabs.training.rewinds import MOST_REWINDS, dropped, next_event
from hessabs.training.setup import Run
from hessabs.training.snapshot import Snapshot, arrays_of, record_of, restore, templates

if TYPE_CHECKING:
    from hessabs.training.store import Saved, Store

_FORMAT = 1


class Session:
    """The folder of a run while it runs. A class, against the house rule: a handle on files and signals.

    Args:
      run: The run.
      workdir: Its folder; None writes nothing.
      options: How it is saved; None makes no checkpoints.
    """

    def __init__(self, run: Run, workdir: pathlib.Path | None, options: Durability | None) -> None:
        self._run, self._workdir = run, workdir
        self._options = options or Durability()
        durability.check(self._options)
        self._period = durability.parse_period(self._options.checkpoint_every)
        self._saves = workdir is not None and options is not None
        self._like = start(run)
        self._started = time.perf_counter()
        self._before = 0.0
        self._saved = Marks(0, 0, 0, 0)
        self._wish = Wish()
        self._store: Store | None = None
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._workdir is not None:
                stack.enter_context(lock_workdir(self._workdir))
            if self._workdir is not None and self._saves:
                from hessabs.training.store import Store  # orbax takes a while to import

                self._store = Store(self._workdir / metrics.CHECKPOINTS, self._options.keep_checkpoints)
                self._wish = stack.enter_context(catch_signals())
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._exit:
            if self._store is not None and kind is None:
                self._store.close()
            elif self._store is not None:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    self._store.close()

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of the run that the folder holds, if it is to go on and has finished.

        Raises:
          ValueError: If it is another run.
        """
        path = None if self._workdir is None else self._workdir / metrics.SUMMARY
        if self._store is None or not self._options.resume or path is None or not path.exists():
            return None
        summary: dict[str, Any] = json.loads(path.read_text())
        contradictions.refuse_contradictions({"config": summary}, self._run)
        _say(f"the run in {self._workdir} has finished; nothing is left to do.")
        return summary

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all its processes."""
        return self._before + time.perf_counter() - self._started

    def begin(self) -> Snapshot:
        """Return where the run begins: at its start, or where a checkpoint left it.

        Raises:
          ValueError: If the checkpoint is that of another run, or there are checkpoints and none is whole.
        """
        fresh = Snapshot(self._like, [], {})
        if self._workdir is None:
            return fresh
        if self._store is not None and self._options.resume:
            metrics.refuse_links(self._workdir)
            snapshot = self._store.latest(self._read)
            if snapshot is not None:
                state, self._before = snapshot.state, snapshot.seconds
                _say(f"going on after {state.samples} examples (epoch {state.position.epoch + 1}).")
                return self._return_to(snapshot)
            if (self._workdir / metrics.METRICS).exists():
                _say("there is no checkpoint to go on from; starting anew.")
        metrics.start_workdir(self._workdir)
        if self._store is not None and self._options.on_nan == "rewind":
            self._save(self._store, fresh)
        return fresh

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of an epoch."""
        if self._workdir is not None:
            metrics.append_line(self._workdir / metrics.METRICS, record)

    def between_steps(self, snapshot: Snapshot) -> None:
        """Save the run if it is time to, and end it if it was asked to end.

        Raises:
          Interrupted: After a signal, when the run is on disk.
          NonFiniteError: If the run is not worth saving.
          OSError: If a checkpoint could not be written.
        """
        if self._store is None:
            return
        signum, samples = self._wish.signum, snapshot.state.samples
        due = self._period.has_passed(self._marks(snapshot), self._saved)
        if (due or signum is not None) and samples != self._saved.samples:
            self._save(self._store, snapshot)
        if signum is not None:
            self._store.wait()
            raise Interrupted(f"saved after {samples} examples; --resume goes on there.", signum)

    def check(self) -> None:
        """Raise OSError if a checkpoint could not be written."""
        if self._store is not None:
            self._store.check()

    def rewind(self, error: NonFiniteError) -> Snapshot:
        """Return to the last checkpoint, to go on with the batch of an update dropped.

        Args:
          error: What happened. If it happens again there, more batches are dropped, from before it on.

        Returns:
          Where to go on.

        Raises:
          NonFiniteError: The error, where rewinding was not asked for.
          FloatingPointError: If the run was rewound too often.
        """
        if self._store is None or self._workdir is None or self._options.on_nan != "rewind":
            raise error
        events = self._events()
        if len(events) >= MOST_REWINDS:
            raise FloatingPointError(f"{error} It was rewound {MOST_REWINDS} times: that is enough.") from error
        self._store.wait()
        metrics.write_lines(self._workdir / metrics.EVENTS, [*events, next_event(events, error.update)])
        snapshot = self._store.latest(self._read)
        if snapshot is None:
            raise error
        _say(f"{error} Rewinding to {snapshot.state.samples} examples, see {metrics.EVENTS}.")
        return self._return_to(snapshot)

    def _save(self, store: "Store", snapshot: Snapshot) -> None:
        check_loss(self._run, snapshot.state)
        check_params(snapshot.state)
        events = self._events()
        record = {
            "format": _FORMAT,
            **contradictions.describe(self._run),
            "devices": self._run.devices,
            **record_of(snapshot._replace(seconds=self.seconds())),
            "events": len(events),
        }
        accuracy = {line["samples"]: line["test_accuracy"] for line in snapshot.records}
        store.save(snapshot.state.samples, arrays_of(snapshot.state), record, accuracy)
        self._saved = self._marks(snapshot)

    def _read(self, saved: "Saved") -> Snapshot:
        if saved.record.get("format") != _FORMAT:
            raise DamagedError(f"record: its format is {saved.record.get('format')!r} and not {_FORMAT}")
        try:
            contradictions.refuse_contradictions(saved.record, self._run)
            now, then = self._run.devices, int(saved.record["devices"])
            arrays = saved.read_arrays(templates(self._like, now, then))
            arrays = {name: regroup(name, array, now, then) for name, array in arrays.items()}
            snapshot = restore(self._like, arrays, saved.record)
            unknown = self._events()[int(saved.record["events"]) :]
        except (KeyError, TypeError, IndexError) as error:
            raise DamagedError(f"record: {type(error).__name__} {error}") from error
        state = snapshot.state
        return snapshot._replace(state=state._replace(drops=dropped(state.drops, unknown, state.updates)))

    def _return_to(self, snapshot: Snapshot) -> Snapshot:
        assert self._workdir is not None
        metrics.write_lines(self._workdir / metrics.METRICS, snapshot.records)
        self._saved = self._marks(snapshot)
        return snapshot

    def _events(self) -> list[dict[str, Any]]:
        path = self._workdir / metrics.EVENTS if self._workdir is not None else None
        return metrics.read_lines(path) if path is not None and path.exists() else []

    def _marks(self, snapshot: Snapshot) -> Marks:
        state, minutes = snapshot.state, (time.perf_counter() - self._started) / 60
        return Marks(state.updates, state.samples, minutes, state.position.epoch)


def _say(text: str) -> None:
    print(f"hessabs: {text}", file=sys.stderr)
