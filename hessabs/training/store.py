"""The folder of a run, for the first of several processes: what it holds, and the ways back into the run."""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hessabs.training import factories, files
from hessabs.training.checkpoints import Checkpoints, DamagedError, Saved
from hessabs.training.factories import FACTORIES, Origin
from hessabs.training.files import say
from hessabs.training.finite import MOST_REWINDS, NonFiniteError, dropped, next_event
from hessabs.training.loop_state import Drop, LoopState, Snapshot, restore, templates
from hessabs.training.network import save_network
from hessabs.training.run import Run

_FORMAT = 4
_MAY_DIFFER = ("data_dir", "data_workers", "devices", "mesh", "callbacks", "text")
_FALL_TO_THE_END = ("cosine", "linear", "wsd")  # schedules that the number of epochs changes from the start


class Found(NamedTuple):
    """A checkpoint that was read."""

    arrays: dict[str, np.ndarray]  # as ``templates`` of this run
    record: dict[str, Any]  # with the batches that later events drop
    snapshot: Snapshot


class Store:
    """The folder of a run, ``like`` whose state a saved one is, with the ``keep`` latest checkpoints."""

    def __init__(self, run: Run, like: LoopState, folder: pathlib.Path, keep: int) -> None:
        self._run, self._like, self.folder = run, like, folder
        self.checkpoints = Checkpoints(folder / files.CHECKPOINTS, keep)
        self._lock = contextlib.ExitStack()

    def open(self) -> None:
        """Keep other runs from the folder."""
        self._lock.enter_context(files.lock_workdir(self.folder))

    def close(self) -> None:
        """Wait for what is being written, and leave the folder to others."""
        with self._lock:
            self.checkpoints.close()

    def summary(self) -> dict[str, Any] | None:
        """Return the summary of a run, the same one, that has finished and is to have no more epochs."""
        path, config = self.folder / files.SUMMARY, self.folder / files.CONFIG
        if not path.exists():
            return None
        summary: dict[str, Any] = json.loads(path.read_text())
        recorded = json.loads(config.read_text()) if config.exists() else {}
        refuse_contradictions({"config": summary, **recorded}, self._run.record)
        if summary["epochs"] < self._run.epochs:
            say(f"the run in {self.folder} has finished; going on to epoch {self._run.epochs}.")
            return None
        say(f"the run in {self.folder} has finished; nothing is left to do.")
        return summary

    def begin(self, *, anew: bool) -> None:
        """Write what the run is; ``anew``, what an earlier run left is removed first."""
        if anew:
            files.start_workdir(self.folder)
        (self.folder / files.DIVERGED).unlink(missing_ok=True)
        files.write_json(self.folder / files.CONFIG, self._run.record)

    def find(self) -> Found | None:
        """Read where a run that was broken off goes on; None where it starts anew."""
        files.refuse_links(self.folder)
        found = self._latest()
        if found is not None:
            position, samples = found.snapshot.state.position, found.snapshot.state.samples
            say(f"going on after {samples} examples (epoch {position.epoch + 1}).")
        elif (self.folder / files.SUMMARY).exists():
            raise FileNotFoundError(
                f"The finished run in {self.folder} left no checkpoint to go on from; pass --overwrite to "
                "train anew, or its own --epochs."
            )
        elif (self.folder / files.METRICS).exists():
            say("there is no checkpoint to go on from; starting anew.")
        return found

    def rewind(self, error: NonFiniteError) -> Found | None:
        """Note that a batch is to be dropped, and read the last checkpoint; FloatingPointError: too often."""
        events = self._events()
        if len(events) >= MOST_REWINDS:
            raise FloatingPointError(f"{error} It was rewound {MOST_REWINDS} times: that is enough.") from error
        self.checkpoints.wait()
        files.write_lines(self.folder / files.EVENTS, [*events, next_event(events, error.update)])
        found = self._latest()
        if found is not None:
            say(f"{error} Rewinding to {found.snapshot.state.samples} examples, see {files.EVENTS}.")
        return found

    def end_diverged(self, error: FloatingPointError) -> None:
        """Write that the run has ended without a network, for what looks at its folder."""
        files.write_json(self.folder / files.DIVERGED, {"diverged": str(error)})

    def append(self, record: dict[str, Any]) -> None:
        """Write the record of an epoch."""
        files.append_line(self.folder / files.METRICS, record)

    def save(self, arrays: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of ``arrays_of`` and ``record_of``."""
        self._check_there()
        whole = {"format": _FORMAT, **self._run.record, **record, "events": len(self._events())}
        scores = {line["samples"]: _score(line) for line in record["records"]}
        self.checkpoints.save(int(record["samples"]), arrays, whole, scores)

    def finish(
        self, network: dict[str, Any], records: list[dict[str, Any]], summary: Mapping[str, Any]
    ) -> None:
        """Write what a run leaves: its network, a picture, and the summary, which says that it has finished."""
        from hessabs.training.curves import draw_curves  # with matplotlib, which training needs not

        self._check_there()
        # A run that went on had finished before, with another network.
        (self.folder / files.SUMMARY).unlink(missing_ok=True)
        files.remove_derived(self.folder)
        save_network(self.folder, network)
        draw_curves(self.folder / files.CURVES, {summary.get("method", self._run.task.name): records})
        files.write_json(self.folder / files.SUMMARY, summary)

    def _check_there(self) -> None:
        if not (self.folder / files.CONFIG).exists():
            raise FileNotFoundError(
                f"{self.folder} has been moved or removed while its run went on; with --resume it goes on from "
                "what was saved, where the folder is now."
            )

    def _latest(self) -> Found | None:
        found = self.checkpoints.latest(self._read)
        if found is not None:
            files.write_lines(self.folder / files.METRICS, found.snapshot.records)
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
        path = self.folder / files.EVENTS
        return files.read_lines(path) if path.exists() else []


def _score(line: Mapping[str, Any]) -> float:
    """Say how good a network is that is to be kept: by its test accuracy, else by its test loss."""
    return float(line["test_accuracy"]) if "test_accuracy" in line else -float(line["test_loss"])


def refuse_contradictions(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare what was saved with a run that is to go on: a ValueError shows both values of each that differs.

    All settings must be equal but ``data_dir``, ``text`` and the path of data (the examples are compared),
    ``data_workers``, callbacks, and the devices: on another number of them the result is the same to float
    tolerance. So must be the data, and what optimiser and rule compute, where the versions that compute it are
    the same. ``epochs`` may be more than were saved, unless the learning rate falls to the end of the run; the
    ends of other things are settings of their own.
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
        and not (name in ("dataset", "name") and _is_moved(old, config))
        and not (name == "epochs" and value > old["epochs"] and old.get("schedule") not in _FALL_TO_THE_END)
        and not (name == "adversarial_epochs" and not config.get("adversarial_fraction"))
    ]
    for name, origin in made_now.items():
        line = factories.changed(Origin(**origin), made.get(name, {}), f"--{name}")
        wrong += [line.rstrip(".")] if line else []
    wrong += [
        f"of the data the {name} is {saved['data'].get(name)} in the checkpoint and {value} now"
        for name, value in now["data"].items()
        if name in saved.get("data", {}) and saved["data"][name] != value
    ]
    parts, parts_now = saved.get("parts", {}), now.get("parts", {})
    if parts.get("made with") == parts_now.get("made with"):  # other versions may compute the same otherwise
        wrong += [f"the {name} is another one" for name in parts_now if parts.get(name) != parts_now[name]]
    if wrong:
        raise ValueError(
            f"This is not the run that was saved: {'; '.join(wrong)}. Its place in the data, its rule and its "
            "optimiser belong to what it began with: pass that, or begin a run of its own in another workdir."
        )


def _is_moved(old: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both are data sets of the same kind, named by where they lie: their examples are compared."""
    kinds = [str(config.get("dataset")).partition(":") for config in (old, now)]
    return kinds[0][0] == kinds[1][0] and all(has_path for _, has_path, _ in kinds)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
