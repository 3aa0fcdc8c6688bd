"""A run while it runs: where it begins, when it is saved, and the ways back.

Of several processes the first alone touches the folder; all of them call the same methods in the same order,
and go on alike.
"""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import jax
import numpy as np

from hessabs.training import durability, factories, files, processes
from hessabs.training.callbacks import Callback, call_all
from hessabs.training.checkpoints import Checkpoints, Saved
from hessabs.training.durability import Durability, Marks
from hessabs.training.factories import FACTORIES, Origin
from hessabs.training.files import say
from hessabs.training.finite import NonFiniteError, check_loss, check_params
from hessabs.training.interruption import Interrupted, Request, catch_signals
from hessabs.training.lock import lock_workdir
from hessabs.training.look.pictures import draw_curves
from hessabs.training.loop_state import Drop, start
from hessabs.training.manifest import DamagedError
from hessabs.training.network import load_network, save_network
from hessabs.training.rewinds import MOST_REWINDS, dropped, next_event
from hessabs.training.run import Run
from hessabs.training.snapshot import Snapshot, arrays_of, record_of, restore, templates
from hessabs.training.step import TrainState

T = TypeVar("T")
_FORMAT = 2
_MAY_DIFFER = ("data_dir", "data_workers", "devices", "mesh", "callbacks", "text")
_FALL_TO_THE_END = ("cosine", "linear", "wsd")  # schedules that the number of epochs changes from the start


class Found(NamedTuple):
    """A checkpoint that was read."""

    arrays: dict[str, np.ndarray]  # as ``templates`` of this run
    record: dict[str, Any]  # with the batches that later events drop
    snapshot: Snapshot


class Session:
    """A run while it runs: the one handle on its folder, its checkpoints and signals.

    Args:
      run: The run.
      folder: Its folder, the same in all processes; None writes nothing.
      options: How it is saved; None makes no checkpoints.
      callbacks: What is told of epochs and decisions.
    """

    def __init__(
        self,
        run: Run,
        folder: pathlib.Path | None,
        options: Durability | None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._run, self._workdir, self._callbacks = run, folder, callbacks
        self._options = options or Durability()
        durability.check(self._options)
        self._period = durability.parse_period(self._options.checkpoint_every)
        self._saves = folder is not None and options is not None
        self._like = start(run)
        self._checkpoints: Checkpoints | None = None
        self._started = time.perf_counter()
        self._before = 0.0
        self._saved = Marks(0, 0, 0, 0)
        self._request, self._poll = Request(), processes.Poll()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if self._saves:
                self._request = stack.enter_context(catch_signals())
            if self._workdir is not None:
                self._on_first(self._open)
                stack.push(self._close)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def _open(self) -> None:
        assert self._workdir is not None
        self._files = contextlib.ExitStack()
        self._files.enter_context(lock_workdir(self._workdir))
        if self._saves:
            self._checkpoints = Checkpoints(self._workdir / files.CHECKPOINTS, self._options.keep_checkpoints)

    def _close_files(self) -> None:
        with self._files:
            if self._checkpoints is not None:
                self._checkpoints.close()

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            processes.on_first(self._close_files)
        elif processes.is_first():  # the others may be gone
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._close_files()

    @property
    def _store(self) -> Checkpoints:
        assert self._checkpoints is not None
        return self._checkpoints

    # What the folder holds.

    def finished(self) -> tuple[Any, Any, Any, dict[str, Any], list[dict[str, Any]]] | None:
        """Return what a finished run left, if this one is to go on there and is to have no more epochs.

        Raises:
          ValueError: If it is another run.
        """
        if self._workdir is None or not self._saves or not self._options.resume:
            return None
        folder = self._workdir
        summary = processes.on_first(lambda: self._summary(folder))
        if summary is None:
            return None
        state = self._run.state
        like = {"params": state.params, "model_state": state.model_state}
        if self._run.settings.ema is not None:
            like["average"] = state.average
        network = load_network(folder, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like))
        records = processes.on_first(lambda: files.read_lines(folder / files.METRICS))
        return network["params"], network["model_state"], network.get("average"), summary, records

    def _summary(self, folder: pathlib.Path) -> dict[str, Any] | None:
        path = folder / files.SUMMARY
        if not path.exists():
            return None
        summary: dict[str, Any] = json.loads(path.read_text())
        config = json.loads((folder / files.CONFIG).read_text()) if (folder / files.CONFIG).exists() else {}
        refuse_contradictions({"config": config.get("config", summary)}, self._run.record)
        if summary["epochs"] < self._run.epochs:
            say(f"the run in {folder} has finished; going on to epoch {self._run.epochs}.")
            return None
        say(f"the run in {folder} has finished; nothing is left to do.")
        return summary

    def begin(self) -> Snapshot:
        """Return where the run begins: at its start, or where a checkpoint left it.

        Raises:
          ValueError: If the checkpoint is that of another run, or there are checkpoints and none is whole.
        """
        fresh = Snapshot(self._like, [], {})
        if self._workdir is None:
            return fresh
        folder = self._workdir
        if self._saves and self._options.resume:
            snapshot = self._go_to(self._find)
            if snapshot is not None:
                self._before = snapshot.seconds
                self._on_first(lambda: files.write_json(folder / files.CONFIG, self._run.record))
                return snapshot

        def begin_anew() -> None:
            files.start_workdir(folder)
            files.write_json(folder / files.CONFIG, self._run.record)

        self._on_first(begin_anew)
        if self._saves and self._options.on_nan == "rewind":
            self._save(fresh)
        return fresh

    def _find(self) -> Found | None:
        assert self._workdir is not None
        files.refuse_links(self._workdir)
        found = self._latest()
        if found is not None:
            position, samples = found.snapshot.state.position, found.snapshot.state.samples
            say(f"going on after {samples} examples (epoch {position.epoch + 1}).")
        elif (self._workdir / files.SUMMARY).exists():
            raise FileNotFoundError(
                f"The finished run in {self._workdir} left no checkpoint to go on from; pass --overwrite to "
                "train anew, or its own --epochs."
            )
        elif (self._workdir / files.METRICS).exists():
            say("there is no checkpoint to go on from; starting anew.")
        return found

    def _latest(self) -> Found | None:
        assert self._workdir is not None
        found = self._store.latest(self._read)
        if found is not None:
            files.write_lines(self._workdir / files.METRICS, found.snapshot.records)
        return found

    def _read(self, saved: Saved) -> Found:
        if saved.record.get("format") != _FORMAT:
            raise DamagedError(f"record: its format is {saved.record.get('format')!r} and not {_FORMAT}")
        try:
            refuse_contradictions(saved.record, self._run.record)
            arrays = saved.read_arrays(templates(self._like))
            pending = [Drop(int(update), int(batches)) for update, batches in saved.record["drops"]]
            unknown = self._events()[int(saved.record["events"]) :]
            drops = dropped(pending, unknown, int(saved.record["updates"]))
            record = {**saved.record, "drops": [list(drop) for drop in drops]}
            return Found(arrays, record, restore(self._like, arrays, record))
        except (KeyError, TypeError, IndexError) as error:
            raise DamagedError(f"record: {type(error).__name__} {error}") from error

    def _events(self) -> list[dict[str, Any]]:
        assert self._workdir is not None
        path = self._workdir / files.EVENTS
        return files.read_lines(path) if path.exists() else []

    # On the way.

    def tell(self, event: str, record: Mapping[str, Any], snapshot: Snapshot | None = None) -> None:
        """Tell the callbacks of the first process; where one raises, the run is saved first."""
        if not self._callbacks:
            return
        if event == "start":
            record = {"workdir": self._workdir, "settings": self._run.record["config"], **record}

        def save() -> None:
            if snapshot is not None and self._saves and jax.process_count() == 1:
                self._save(snapshot)
                self._store.wait()

        processes.on_first(lambda: call_all(self._callbacks, event, record, save))

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of an epoch."""
        if self._workdir is not None:
            path = self._workdir / files.METRICS
            self._on_first(lambda: files.append_line(path, record))

    def between_updates(self, snapshot: Snapshot) -> None:
        """Save the run if it is time to, and end it if it was asked to end; all processes do it here or none.

        Raises:
          Interrupted: After a signal to any process, when the run is on disk.
          NonFiniteError: If the run is not worth saving.
          OSError: If a checkpoint could not be written.
        """
        if not self._saves:
            return
        due = self._period.has_passed(self._marks(snapshot), self._saved)
        signum = self._request.signum
        if jax.process_count() > 1:
            # What is counted is the same in all; clocks and signals are not.
            late, signum = self._poll.ask(due, signum)
            due = late if self._period.unit == "min" else due
        samples = snapshot.state.samples
        if (due or signum is not None) and samples != self._saved.samples:
            self._save(snapshot)
        if signum is not None:
            processes.on_first(lambda: self._store.wait())
            raise Interrupted(f"saved after {samples} examples; --resume goes on there.", signum)

    def trained(self, snapshot: Snapshot) -> None:
        """Save the run at the end of its training, from where it may go on for more epochs.

        From now on a signal ends it at once: what is left is to look at the network.

        Raises:
          Interrupted: After a signal to any process.
          OSError: If the checkpoint could not be written.
        """
        if not self._saves:
            return
        samples = snapshot.state.samples
        if samples != self._saved.samples:
            self._save(snapshot)
        self._on_first(lambda: self._store.wait())
        self._request.saved = f"saved after {samples} examples, the last; --resume goes on there."
        signum = self._request.signum
        if jax.process_count() > 1:
            signum = int(processes.gather([signum or 0])[:, 0].max()) or None
        if signum is not None:
            raise Interrupted(self._request.saved, signum)

    def check(self) -> None:
        """Raise OSError if a checkpoint could not be written; for a single process, which need not agree."""
        if self._saves:
            self._store.check()

    def rewind(self, error: NonFiniteError) -> Snapshot:
        """Return to the last checkpoint, to go on with the batch of an update dropped.

        Raises:
          NonFiniteError: The error, where rewinding was not asked for.
          FloatingPointError: If the run was rewound too often.
        """
        if not self._saves or self._options.on_nan != "rewind":
            raise error

        def find() -> Found | None:
            assert self._workdir is not None
            events = self._events()
            if len(events) >= MOST_REWINDS:
                raise FloatingPointError(
                    f"{error} It was rewound {MOST_REWINDS} times: that is enough."
                ) from error
            self._store.wait()
            files.write_lines(self._workdir / files.EVENTS, [*events, next_event(events, error.update)])
            found = self._latest()
            if found is not None:
                say(f"{error} Rewinding to {found.snapshot.state.samples} examples, see {files.EVENTS}.")
            return found

        snapshot = self._go_to(find)
        if snapshot is None:
            raise error
        return snapshot

    def seconds(self) -> float:
        """Return the seconds that the run took so far, in all its lives."""
        return self._before + time.perf_counter() - self._started

    def finish(self, last: TrainState, records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Write what a run leaves: its network, a picture, and the summary, which says that it has finished."""
        network = {"params": last.params, "model_state": last.model_state}
        if self._run.settings.ema is not None:
            network["average"] = last.average
        leaves, structure = jax.tree.flatten(network)
        # From the host: the file must not remember how many devices there were.
        network = jax.tree.unflatten(structure, processes.to_host(leaves)) if self._workdir is not None else {}

        def write() -> None:
            assert self._workdir is not None
            # A run that went on had finished before, with another network.
            (self._workdir / files.SUMMARY).unlink(missing_ok=True)
            files.remove_derived(self._workdir)
            save_network(self._workdir, network)
            draw_curves(self._workdir / files.CURVES, {summary.get("method", self._run.task.name): records})
            files.write_json(self._workdir / files.SUMMARY, summary)

        if self._workdir is not None:
            self._on_first(write)
        self.tell("end", summary)

    def _on_first(self, act: Callable[[], T]) -> T:
        then = " and go on with --resume" if self._saves else ""

        def acting() -> T:
            with files.usable("workdir", self._workdir, then):
                return act()

        return processes.on_first(acting)

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
            arrays = processes.tree_of_first(templates(self._like) if found is None else found.arrays)
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
        scores = {line["samples"]: _score(line) for line in snapshot.records}

        def save() -> None:
            whole = {"format": _FORMAT, **self._run.record, **record, "events": len(self._events())}
            self._store.save(int(record["samples"]), arrays, whole, scores)

        self._on_first(save)
        self._saved = self._marks(snapshot)

    def _marks(self, snapshot: Snapshot) -> Marks:
        state, minutes = snapshot.state, (time.perf_counter() - self._started) / 60
        return Marks(state.updates, state.samples, minutes, state.position.epoch)


def _score(line: Mapping[str, Any]) -> float:
    """Say how good a network is that is to be kept: by its test accuracy, else by its test loss."""
    return float(line["test_accuracy"]) if "test_accuracy" in line else -float(line["test_loss"])


def refuse_contradictions(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what was saved with a run that is to go on.

    All settings must be equal but ``data_dir`` and ``text``, for the examples are compared instead,
    ``data_workers``, callbacks, and the devices: on another number of them the result is the same to float
    tolerance. ``epochs`` may be more than were saved, unless the learning rate falls to the end of the run; the
    ends of other things are settings of their own.

    Raises:
      ValueError: If a setting contradicts what was saved, showing both values of each that does.
    """
    old = dict(saved["config"])
    config = json.loads(json.dumps(now["config"]))
    made, made_now = old.pop(FACTORIES, None) or {}, config.pop(FACTORIES, None) or {}
    wrong = [
        f"--{name} is {_shown(old.get(name))} in the checkpoint and {_shown(value)} now"
        for name, value in config.items()
        if name not in _MAY_DIFFER
        and name in old
        and old[name] != value
        and not (name in made and name in made_now)
        and not (name == "epochs" and value > old["epochs"] and old.get("schedule") not in _FALL_TO_THE_END)
        and not (name == "adversarial_epochs" and not config.get("adversarial_fraction"))
    ]
    for name, origin in made_now.items():
        line = factories.changed(Origin(**origin), made.get(name, {}), f"--{name}")
        wrong += [line.rstrip(".")] if line else []
    wrong += [
        f"of the data the {name} is {saved['data'].get(name)} in the checkpoint and {value} now"
        for name, value in now["data"].items()
        if "data" in saved and saved["data"].get(name) != value
    ]
    if wrong:
        raise ValueError(
            f"This is not the run that was saved: {'; '.join(wrong)}. Its place in the data, its rule and its "
            "optimiser belong to what it began with: pass that, or begin a run of its own in another workdir."
        )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
