"""A run while it runs: where it begins, when it is saved, and the ways back.

Of several processes the first alone touches the folder (``hessabs.training.saving.folder``); all of them call
the same methods in the same order, and go on alike.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from hessabs.training import metrics
from hessabs.training.devices import processes, sharing
from hessabs.training.devices.poll import Poll
from hessabs.training.finite import NonFiniteError, check_loss, check_params
from hessabs.training.loop_state import start
from hessabs.training.reports.curves import draw_curves
from hessabs.training.saving import checkpoint, durability
from hessabs.training.saving.durability import Durability, Marks
from hessabs.training.saving.folder import Folder, Found
from hessabs.training.saving.interruption import Interrupted, Wish, catch_signals
from hessabs.training.saving.snapshot import Snapshot, arrays_of, record_of, restore, templates
from hessabs.training.setup import Run
from hessabs.training.state import TrainState

T = TypeVar("T")


class Session:
    """A run while it runs. A class, against the house rule: a handle on files and signals.

    Args:
      run: The run.
      workdir: Its folder, the same in all processes; None writes nothing.
      options: How it is saved; None makes no checkpoints.
    """

    def __init__(self, run: Run, workdir: pathlib.Path | None, options: Durability | None) -> None:
        self._run, self._workdir = run, workdir
        self._options = options or Durability()
        durability.check(self._options)
        self._period = durability.parse_period(self._options.checkpoint_every)
        self._saves = workdir is not None and options is not None
        self._like = start(run)
        self._folder = Folder(workdir or pathlib.Path(), run, options, self._like)
        self._started = time.perf_counter()
        self._before = 0.0
        self._saved = Marks(0, 0, 0, 0)
        self._wish, self._poll = Wish(), Poll()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._saves:
                self._wish = stack.enter_context(catch_signals())
            if self._workdir is not None:
                self._on_first(self._folder.open)
                stack.push(self._close)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            sharing.on_first(self._folder.close)
        elif processes.is_first():  # the others may be gone
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._folder.close()

    def finished(self) -> tuple[Any, Any, dict[str, Any], list[dict[str, Any]]] | None:
        """Return what the run left that the folder holds, if it is to go on and has finished.

        Returns:
          (params, model state, summary, records), or None.

        Raises:
          ValueError: If it is another run.
        """
        if self._workdir is None or not self._saves or not self._options.resume:
            return None
        workdir = self._workdir
        summary = sharing.on_first(self._folder.finished)
        if summary is None:
            return None
        network = jax.eval_shape(self._run.view, self._run.state)
        saved = checkpoint.load_params(workdir, network.params, network.model_state)
        return *saved, summary, sharing.on_first(lambda: metrics.read_lines(workdir / metrics.METRICS))

    def finish(self, last: TrainState, records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Write what a run leaves: its network, a picture, and the summary, which says that it has finished.

        Args:
          last: Its last state, as one device would have it.
          records: Its lines.
          summary: Its summary.
        """
        if self._workdir is None:
            return
        workdir = self._workdir

        def write() -> None:
            # A run that went on had finished before, with another network.
            (workdir / metrics.SUMMARY).unlink(missing_ok=True)
            metrics.remove_derived(workdir)
            checkpoint.save_params(workdir, last.params, last.model_state)
            draw_curves(workdir / metrics.CURVES, {self._run.config.method: records})
            metrics.write_json(workdir / metrics.SUMMARY, summary)

        self._on_first(write)

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all its lives."""
        return self._before + time.perf_counter() - self._started

    def begin(self) -> Snapshot:
        """Return where the run begins: at its start, or where a checkpoint left it.

        Raises:
          ValueError: If the checkpoint is that of another run, or there are checkpoints and none is whole.
        """
        fresh = Snapshot(self._like, [], {})
        if self._workdir is None:
            return fresh
        if self._saves and self._options.resume:
            snapshot = self._go_to(lambda: self._folder.find())
            if snapshot is not None:
                self._before = snapshot.seconds
                return snapshot
        self._on_first(self._folder.start_anew)
        if self._saves and self._options.on_nan == "rewind":
            self._save(fresh)
        return fresh

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of an epoch."""
        if self._workdir is not None:
            self._on_first(lambda: self._folder.append(record))

    def between_steps(self, snapshot: Snapshot) -> None:
        """Save the run if it is time to, and end it if it was asked to end; all processes do it here or none.

        Raises:
          Interrupted: After a signal to any process, when the run is on disk.
          NonFiniteError: If the run is not worth saving.
          OSError: If a checkpoint could not be written.
        """
        if not self._saves:
            return
        due = self._period.has_passed(self._marks(snapshot), self._saved)
        signum = self._wish.signum
        if jax.process_count() > 1:
            # What is counted is the same in all; clocks and signals are not.
            late, signum = self._poll.ask(due, signum)
            due = late if self._period.unit == "min" else due
        samples = snapshot.state.samples
        if (due or signum is not None) and samples != self._saved.samples:
            self._save(snapshot)
        if signum is not None:
            sharing.on_first(lambda: self._folder.store.wait())
            raise Interrupted(f"saved after {samples} examples; --resume goes on there.", signum)

    def trained(self, snapshot: Snapshot) -> None:
        """Save the run at the end of its training, from where it may go on for more epochs.

        From now on a signal ends it at once: what is left is to look at the network.

        Args:
          snapshot: The run behind its last micro-batch.

        Raises:
          Interrupted: After a signal to any process.
          OSError: If the checkpoint could not be written.
        """
        if not self._saves:
            return
        samples = snapshot.state.samples
        if samples != self._saved.samples:
            self._save(snapshot)
        self._on_first(lambda: self._folder.store.wait())
        self._wish.saved = f"saved after {samples} examples, the last; --resume goes on there."
        signum = self._wish.signum
        if jax.process_count() > 1:
            signum = int(sharing.gather([signum or 0])[:, 0].max()) or None
        if signum is not None:
            raise Interrupted(self._wish.saved, signum)

    def check(self) -> None:
        """Raise OSError if a checkpoint could not be written; for a single process, which need not agree."""
        if self._saves:
            self._folder.store.check()

    def rewind(self, error: NonFiniteError) -> Snapshot:
        """Return to the last checkpoint, to go on with the batch of an update dropped.

        Args:
          error: What happened.

        Returns:
          Where to go on.

        Raises:
          NonFiniteError: The error, where rewinding was not asked for.
          FloatingPointError: If the run was rewound too often.
        """
        if not self._saves or self._options.on_nan != "rewind":
            raise error
        snapshot = self._go_to(lambda: self._folder.rewind(error))
        if snapshot is None:
            raise error
        return snapshot

    def _on_first(self, act: Callable[[], T]) -> T:
        then = " and go on with --resume" if self._saves else ""

        def acting() -> T:
            with metrics.usable("workdir", self._workdir, then):
                return act()

        return sharing.on_first(acting)

    def _go_to(self, find: Callable[[], Found | None]) -> Snapshot | None:
        found: Found | None = None

        def read() -> dict[str, Any] | None:
            nonlocal found
            found = find()
            return None if found is None else found.record

        record = self._on_first(read)
        if record is None:
            return None
        if jax.process_count() > 1:
            arrays = sharing.tree_of_first(templates(self._like) if found is None else found.arrays)
            snapshot = restore(self._like, arrays, record)
        else:
            assert found is not None
            snapshot = found.snapshot
        self._saved = self._marks(snapshot)
        return snapshot

    def _save(self, snapshot: Snapshot) -> None:
        check_loss(self._run, snapshot.state)
        check_params(snapshot.state)
        arrays = arrays_of(snapshot.state)
        record = record_of(snapshot._replace(seconds=self.seconds()))
        accuracy = {line["samples"]: line["test_accuracy"] for line in snapshot.records}
        self._on_first(lambda: self._folder.save(arrays, record, accuracy))
        self._saved = self._marks(snapshot)

    def _marks(self, snapshot: Snapshot) -> Marks:
        state, minutes = snapshot.state, (time.perf_counter() - self._started) / 60
        return Marks(state.updates, state.samples, minutes, state.position.epoch)
