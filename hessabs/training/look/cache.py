"""Results of the parts of a long evaluation, found again after a kill by what they depend on.

A result is a NumPy archive of plain arrays and one text of JSON (nothing is unpickled), written whole or not at
all. Its name and its content hold a digest of everything that it depends on, so that what belongs to other
params, data or options is never taken for it.
"""

import hashlib
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import hessabs
from hessabs.training import files

_IDENTITY, _JSON = "__identity__", "__json__"


def digest(tree: Any) -> str:
    """Digest the arrays of a pytree, their paths, dtypes and shapes."""
    state = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        state.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def identify(**parts: Any) -> str:
    """Digest what a result depends on: JSON by name, and the version of this package."""
    text = json.dumps({**parts, "version": hessabs.__version__}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Kept(NamedTuple):
    """The results in a folder that depend on one and the same."""

    folder: pathlib.Path
    identity: str  # from `identify`

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Read a result, or compute and keep it."""
        found = self.find(name)
        if found is None:
            found = compute()
            self.keep(name, found)
        return found

    def holds(self, name: str) -> bool:
        """Whether there is a result, which may be damaged."""
        return self._path(name).exists()

    def find(self, name: str) -> dict[str, Any] | None:
        """Read a result; None if there is none, or it is damaged, which is said."""
        path = self._path(name)
        try:
            # Opened here: what NumPy opens stays open when it is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                values = {key: saved[key] for key in saved.files}
            if str(values.pop(_IDENTITY)) == f"{name} {self.identity}":
                return {**json.loads(str(values.pop(_JSON))), **values}
            reason: Any = "it belongs to something else"
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            reason = f"it cannot be read ({error})"
        files.say(f"{path} is left aside: {reason}.")
        return None

    def keep(self, name: str, values: Mapping[str, Any]) -> None:
        """Write a result: arrays, and what JSON can hold. Where nothing can be written, say so and go on."""
        try:
            self._write(name, values)
        except OSError as error:
            files.say(f"{name} is not kept: {error.strerror} at {self.folder}.")

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(name)
        partial = path.with_suffix(".partial")
        arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray | jax.Array)}
        rest = json.dumps({key: value for key, value in values.items() if key not in arrays})
        fields = {**arrays, _IDENTITY: np.array(f"{name} {self.identity}"), _JSON: np.array(rest)}
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **{key: np.asarray(value) for key, value in fields.items()})
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def drop(self, name: str, *, others: bool = False) -> None:
        """Remove the results of a name, whatever they depend on; with ``others`` not that of this identity."""
        for path in self.folder.glob(f"{_plain(name)}-{'?' * 16}.npz"):
            if not (others and path == self._path(name)):
                path.unlink()

    def _path(self, name: str) -> pathlib.Path:
        return self.folder / f"{_plain(name)}-{self.identity[:16]}.npz"


class Place(NamedTuple):
    """Where one result is kept."""

    kept: Kept
    name: str

    def is_filled(self) -> bool:
        """Whether a result is there; it has not been read yet."""
        return self.kept.holds(self.name)

    def once(self, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Read the result, or compute and keep it."""
        return self.kept.once(self.name, compute)


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
