"""A run while it runs: where it begins, when it is saved, and when it goes back.

Of several processes the first alone touches the folder; all of them call the same methods in the same order,
and go on alike.
"""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import jax

from hessabs.training import durability, files, processes
from hessabs.training.callbacks import Callback, call_all
from hessabs.training.clock import Clock
from hessabs.training.durability import Durability, Marks
from hessabs.training.finite import NonFiniteError, check_loss, check_params
from hessabs.training.interruption import Interrupted, Request, catch_signals
from hessabs.training.loop_state import LoopState, Snapshot, arrays_of, record_of, restore, start, templates
from hessabs.training.network import load_network
from hessabs.training.run import Run
from hessabs.training.store import Found, Store

T = TypeVar("T")


class Session:
    """A run while it runs: the one handle on its folder, its checkpoints and signals.

    Without a ``workdir`` it writes nothing, without ``options`` it makes no checkpoints.
    """

    def __init__(
        self,
        run: Run,
        workdir: pathlib.Path | None,
        options: Durability | None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._run, self._workdir, self._callbacks = run, workdir, callbacks
        self._options = options or Durability()
        durability.check(self._options)
        self._period = durability.parse_period(self._options.checkpoint_every)
        self._like = start(run)
        # What is called in another process than the first goes through `on_first`, and does nothing there.
        keep = self._options.keep_checkpoints
        self._folder = None if workdir is None else Store(run, self._like, workdir, keep)
        self._saves = self._folder if options is not None else None
        self._started, self._before = time.perf_counter(), 0.0
        self._saved = Marks(0, 0, 0, 0)
        self._request, self._poll = Request(), processes.Poll()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._saves:
                self._request = stack.enter_context(catch_signals())
            if self._folder:
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
        assert self._folder
        if kind is None:
            processes.on_first(self._folder.close)
        elif processes.is_first():  # the others may be gone
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._folder.close()

    def _on_first(self, act: Callable[[], T]) -> T:
        then = " and go on with --resume" if self._saves else ""

        def acting() -> T:
            with files.usable("workdir", self._workdir, then):
                return act()

        return processes.on_first(acting)

    def finished(self) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]] | None:
        """Return network, summary and records of a finished run that this one is to go on with, if any."""
        store = self._saves
        summary = processes.on_first(store.summary) if store and self._options.resume else None
        if store is None or summary is None:
            return None
        state = self._run.state
        like = {"params": state.params, "model_state": state.model_state}
        if self._run.settings.ema is not None:
            like |= {"average": state.params, "average_state": state.model_state}
        network = load_network(store.folder, like)
        records = processes.on_first(lambda: files.read_lines(store.folder / files.METRICS))
        return network, summary, records

    def begin(self) -> Snapshot:
        """Return where the run begins: at its start, or where a checkpoint of the same run left it."""
        fresh, store = Snapshot(self._like, [], {}), self._folder
        if store is None:
            return fresh
        resumed = self._go_to(store.find) if self._saves and self._options.resume else None
        self._on_first(lambda: store.begin(anew=resumed is None))
        if resumed is not None:
            self._before = resumed.seconds
            return resumed
        if self._saves and self._options.on_nan == "rewind":
            self._save(self._saves, fresh)
        return fresh

    def rewind(self, error: NonFiniteError) -> Snapshot:
        """Return to the last checkpoint, to go on with a batch dropped, if that was asked for."""
        store, folder = self._saves if self._options.on_nan == "rewind" else None, self._folder
        try:
            snapshot = self._go_to(lambda: store.rewind(error)) if store else None
            if snapshot is None:
                raise error
        except FloatingPointError as last:
            if folder:
                self._on_first(functools.partial(folder.end_diverged, last))
            raise
        return snapshot

    def _go_to(self, find: Callable[[], Found | None]) -> Snapshot | None:
        found: Found | None = None

        def read() -> dict[str, Any] | None:
            nonlocal found
            found = find()
            return None if found is None else found.record

        record = self._on_first(read)
        if record is None:
            return None
        arrays = processes.tree_of_first(templates(self._like) if found is None else found.arrays)
        snapshot = restore(self._like, arrays, record) if found is None else found.snapshot
        self._saved = self._marks(snapshot.state)
        return snapshot

    def tell(self, event: str, record: Mapping[str, Any], snapshot: Snapshot | None = None) -> None:
        """Tell the callbacks of the first process; where one raises, the run is saved first."""
        if not self._callbacks:
            return
        if event == "start":
            record = {"workdir": self._workdir, "settings": self._run.record["config"], **record}

        def save() -> None:
            if snapshot is not None and self._saves and jax.process_count() == 1:
                self._save(self._saves, snapshot)
                self._saves.checkpoints.wait()

        processes.on_first(lambda: call_all(self._callbacks, event, record, save))

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of an epoch."""
        store = self._folder
        if store:
            self._on_first(lambda: store.append(record))

    def between_updates(self, state: LoopState, records: list[dict[str, Any]], clock: Clock) -> None:
        """Save the run if it is time to, and end it if it was asked to end; all processes do it here or none.

        ``Interrupted``: a signal came to any process, and the run is on disk. ``NonFiniteError``: it is not
        worth saving. OSError: a checkpoint could not be written.
        """
        store = self._saves
        if store is None:
            return
        due = self._period.has_passed(self._marks(state), self._saved)
        signum = self._request.signum
        if jax.process_count() > 1:
            # What is counted is the same in all; clocks and signals are not.
            late, signum = self._poll.ask(due, signum)
            due = late if self._period.unit == "min" else due
        if (due or signum is not None) and state.samples != self._saved.samples:
            self._save(store, Snapshot(state, records, clock.save()))
        if signum is not None:
            processes.on_first(store.checkpoints.wait)
            raise Interrupted(f"saved after {state.samples} examples; --resume goes on there.", signum)

    def trained(self, snapshot: Snapshot) -> None:
        """Save the run at the end of its training, from where it may go on for more epochs.

        From now on a signal ends it at once, with ``Interrupted``: what is left is to look at the network.
        """
        store, samples = self._saves, snapshot.state.samples
        if store is None:
            return
        if samples != self._saved.samples:
            self._save(store, snapshot)
        self._on_first(store.checkpoints.wait)
        self._request.saved = f"saved after {samples} examples, the last; --resume goes on there."
        signum = self._request.signum
        if jax.process_count() > 1:
            signum = int(processes.gather([signum or 0])[:, 0].max()) or None
        if signum is not None:
            raise Interrupted(self._request.saved, signum)

    def check(self) -> None:
        """Raise OSError if a checkpoint could not be written; for a single process, which need not agree."""
        if self._saves:
            self._saves.checkpoints.check()

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all its lives."""
        return self._before + time.perf_counter() - self._started

    def finish(self, network: dict[str, Any], records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Write what a run leaves, and tell of it."""
        store = self._folder
        if store:
            leaves, structure = jax.tree.flatten(network)
            # From the host: the file must not remember how many devices there were.
            network = jax.tree.unflatten(structure, processes.to_host(leaves))
            self._on_first(lambda: store.finish(network, records, summary))
        self.tell("end", summary)

    def _save(self, store: Store, snapshot: Snapshot) -> None:
        check_loss(self._run, snapshot.state)
        check_params(snapshot.state)
        arrays, record = arrays_of(snapshot.state), record_of(snapshot._replace(seconds=self.seconds()))
        self._on_first(lambda: store.save(arrays, record))
        self._saved = self._marks(snapshot.state)

    def _marks(self, state: LoopState) -> Marks:
        minutes = (time.perf_counter() - self._started) / 60
        epochs = state.position.epoch + state.position.index / self._run.epoch_micro_batches
        return Marks(state.updates, state.samples, minutes, epochs)
