"""Results of the parts of a long evaluation, one file each, found again by what they depend on.

A file is a NumPy archive of plain arrays (nothing is unpickled), written whole or not at all. Its name and its
content hold a digest of everything the result depends on, so that what belongs to another network, other images
or other options is never taken for it.
"""

import hashlib
import json
import pathlib
import zipfile
from typing import Any

import jax
import numpy as np

Arrays = dict[str, np.ndarray]
_IDENTITY = "identity"


def digest(tree: Any) -> str:
    """Return a digest of the arrays of a pytree, their paths, dtypes and shapes.

    Args:
      tree: A pytree of arrays.

    Returns:
      64 hexadecimal digits.
    """
    state = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        state.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def identify(**parts: Any) -> str:
    """Return a digest of what a result depends on.

    Args:
      **parts: Names to numbers, strings or None.

    Returns:
      64 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(folder: pathlib.Path, name: str, identity: str) -> Arrays | None:
    """Read a result that was finished before.

    Args:
      folder: Where results are kept.
      name: What it is, for people.
      identity: What it depends on.

    Returns:
      Its arrays, or None if there is no such file or it cannot be read.
    """
    try:
        with _path(folder, name, identity).open("rb") as file, np.load(file, allow_pickle=False) as saved:
            arrays = {key: saved[key] for key in saved.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return arrays if str(arrays.pop(_IDENTITY, "")) == identity else None


def keep(folder: pathlib.Path, name: str, identity: str, arrays: Arrays) -> None:
    """Write a result.

    Args:
      folder: Where results are kept; made if need be.
      name: What it is, for people.
      identity: What it depends on.
      arrays: The result; not named "identity".
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, name, identity)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **{**arrays, _IDENTITY: np.array(identity)})
    partial.replace(path)


def _path(folder: pathlib.Path, name: str, identity: str) -> pathlib.Path:
    return folder / f"{name}-{identity[:16]}.npz"
