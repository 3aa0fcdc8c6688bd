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
from collections.abc import Mapping
from typing import Any

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


def find(folder: pathlib.Path, name: str, identity: str) -> dict[str, Any] | None:
    """Read a result; None if there is none, or it is damaged, which is said."""
    path = _path(folder, name, identity)
    try:
        # Opened here: what NumPy opens stays open when it is no archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            values = {key: saved[key] for key in saved.files}
        if str(values.pop(_IDENTITY)) == f"{name} {identity}":
            return {**json.loads(str(values.pop(_JSON))), **values}
        reason: Any = "it belongs to something else"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = f"it cannot be read ({error})"
    files.say(f"{path} is left aside: {reason}.")
    return None


def keep(folder: pathlib.Path, name: str, identity: str, values: Mapping[str, Any]) -> None:
    """Write a result: arrays, and what JSON can hold."""
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, name, identity)
    partial = path.with_suffix(".partial")
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray | jax.Array)}
    rest = json.dumps({key: value for key, value in values.items() if key not in arrays})
    fields = {**arrays, _IDENTITY: np.array(f"{name} {identity}"), _JSON: np.array(rest)}
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{key: np.asarray(value) for key, value in fields.items()})
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def drop(folder: pathlib.Path, name: str, but: str | None = None) -> None:
    """Remove the results of a name, but for that of one identity."""
    for path in folder.glob(f"{_plain(name)}-{'?' * 16}.npz"):
        if but is None or path != _path(folder, name, but):
            path.unlink()


def _path(folder: pathlib.Path, name: str, identity: str) -> pathlib.Path:
    return folder / f"{_plain(name)}-{identity[:16]}.npz"


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)
