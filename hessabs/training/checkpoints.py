"""Checkpoints on disk, through orbax: asynchronous, atomic, checked by SHA-256, a number of them kept.

A checkpoint is a folder ``checkpoints/SAMPLES`` with two items: ``arrays`` (a flat dictionary of arrays, in
TensorStore's format) and ``record`` (JSON). Each has a manifest with the SHA-256 of its files, written before
orbax renames the folder to its name. Reading takes bytes, numbers and text from it and nothing else: no pickle
and no name of a class; names, shapes and dtypes of the arrays must be those that the run expects.
"""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orbax.checkpoint as ocp

from hessabs.training.files import say
from hessabs.training.network import one_process, reason

MANIFEST = "manifest.json"
_ITEMS = ("arrays", "record")
T = TypeVar("T")


class DamagedError(ValueError):
    """A folder that does not hold what was once written there."""


def write_manifest(folder: pathlib.Path) -> None:
    """Note the size and the SHA-256 of every file of a folder that will not change any more."""
    files = {
        str(path.relative_to(folder)): _describe(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def verify_manifest(folder: pathlib.Path) -> None:
    """Raise DamagedError if a file that the manifest of a folder names is missing or differs."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        wanted = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise DamagedError(f"{folder.name}/{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError(f"{folder.name}/{MANIFEST} cannot be read") from None
    for name, (size, digest) in wanted.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise DamagedError(f"{folder.name}/{name} is missing")
        got = _describe(path)
        if got["bytes"] != size:
            raise DamagedError(f"{folder.name}/{name} has {got['bytes']} bytes and had {size}")
        if got["sha256"] != digest:
            raise DamagedError(f"{folder.name}/{name} has changed: its SHA-256 is another")


def _describe(path: pathlib.Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


class Saved(NamedTuple):
    """A checkpoint that was found whole."""

    samples: int
    record: dict[str, Any]
    read_arrays: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # raises DamagedError


class Checkpoints:
    """The checkpoints of a run, of which the ``keep`` latest stay: the one handle on orbax's manager."""

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        self._folder = folder.absolute()
        self._keep = _Keep(keep)
        self._manager: ocp.CheckpointManager | None = None

    def save(
        self,
        samples: int,
        arrays: Mapping[str, np.ndarray],
        record: Mapping[str, Any],
        accuracy: Mapping[int, float],
    ) -> None:
        """Begin to write a checkpoint; an earlier one is on disk when this returns.

        It is named by the examples trained on. The arrays lie on the host and must not change any more, the
        record is what JSON can hold; of the ``accuracy`` at the ends of epochs, by examples, the best is kept.
        """
        self._keep.accuracy = dict(accuracy)
        self._guard(
            lambda: self._open().save(
                samples,
                args=ocp.args.Composite(arrays=_SaveArrays(dict(arrays)), record=_SaveRecord(dict(record))),
            )
        )

    def check(self) -> None:
        """Raise OSError if a checkpoint could not be written."""
        if self._manager is not None:
            self._guard(self._manager.check_for_errors)

    def wait(self) -> None:
        """Wait until every checkpoint is on disk; raise OSError if one could not be written."""
        if self._manager is not None:
            self._guard(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait as ``wait`` does, and let the threads of the manager go."""
        manager, self._manager = self._manager, None
        if manager is not None:
            self._guard(manager.close)

    def latest(self, use: Callable[[Saved], T]) -> T | None:
        """Return what ``use`` makes of the latest checkpoint that is whole; None if there is no checkpoint.

        It may raise DamagedError, and the one before is tried. Damaged ones are named on standard error and
        removed; where all are damaged, DamagedError is raised and none is removed.
        """
        self.close()
        damaged = []
        for samples in _steps(self._folder):
            folder = self._folder / str(samples)
            try:
                result = use(_read(folder, samples))
            except DamagedError as error:
                say(f"the checkpoint at {samples} examples is damaged ({error}); trying the one before it.")
                damaged.append(folder)
                continue
            for folder in damaged:
                shutil.rmtree(folder)
            return result
        if damaged:
            raise DamagedError(
                f"None of the checkpoints in {self._folder} can be used; pass --overwrite to start anew."
            )
        return None

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            options = one_process(self._folder.name)
            self._manager = ocp.CheckpointManager(
                self._folder,
                item_handlers={"arrays": _Arrays(**options), "record": _Record(**options)},
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._keep,
                    cleanup_tmp_directories=True,
                    save_root_metadata=False,
                    create=False,
                    **options,
                ),
            )
        return self._manager

    def _guard(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # TensorStore's errors have no class of their own
            self._manager = None
            last = _steps(self._folder)
            raise OSError(
                f"A checkpoint could not be written in `workdir`, {self._folder}: {reason(error)}. "
                + (f"The last good one is that at {last[0]} examples" if last else "There is none")
                + "; make room and go on with --resume."
            ) from error


class _Keep:
    """Which checkpoints orbax keeps: the latest, and the best of those at the end of an epoch."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.accuracy: dict[int, float] = {}

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        rated = [step for step in steps if step in self.accuracy]
        best = max(rated, key=lambda step: (self.accuracy[step], -step), default=None)
        return [step in steps[-self._number :] or step == best for step in steps]


class _Arrays(ocp.StandardCheckpointHandler):
    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        write_manifest(pathlib.Path(directory))


class _Record(ocp.JsonCheckpointHandler):
    def finalize(self, directory: Any) -> None:
        write_manifest(pathlib.Path(directory))


@ocp.args.register_with_handler(_Arrays, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveArrays(ocp.args.StandardSave):
    pass


@ocp.args.register_with_handler(_Record, for_save=True, for_restore=True)
@dataclasses.dataclass
class _SaveRecord(ocp.args.JsonSave):
    pass


def _steps(folder: pathlib.Path) -> list[int]:
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _read(folder: pathlib.Path, samples: int) -> Saved:
    for item in _ITEMS:
        verify_manifest(folder / item)
    try:
        record = ocp.JsonCheckpointHandler(**one_process("record")).restore(folder / "record")
    except ValueError as error:
        raise DamagedError(f"record: {error}") from error
    if not isinstance(record, dict):
        raise DamagedError("record: no dictionary")

    def read_arrays(like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            with ocp.StandardCheckpointer(**one_process("reading")) as checkpointer:
                arrays = dict(checkpointer.restore(folder / "arrays", dict(like)))
        except Exception as error:
            raise DamagedError(f"arrays: {reason(error)}") from error
        for name, wanted in like.items():  # orbax checks the names alone
            got = arrays[name]
            if got.shape != wanted.shape or got.dtype != wanted.dtype:
                raise DamagedError(
                    f"arrays: {name} is {got.dtype}{list(got.shape)} and the run has "
                    f"{wanted.dtype}{list(wanted.shape)}"
                )
        return arrays

    return Saved(samples, record, read_arrays)
