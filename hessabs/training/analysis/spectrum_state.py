"""What an interrupted ``hessabs spectrum`` goes on from: results that are whole, and the matrix it was at.

Files in the folder of the run, each written whole or not at all: ``spectrum_state.json`` holds what is done, by
name; ``spectrum_state.npz`` the Krylov state of the matrix at hand and ``spectrum_directions.npz`` the first
two eigenvectors (arrays and text, nothing that is unpickled). Each carries a fingerprint of the params, the
data and the options; those of anything else are left aside. They go when the spectrum is complete.
"""

import json
import os
import pathlib
import sys
import time
import zipfile
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from hessabs import curvature
from hessabs.training import metrics
from hessabs.training.analysis import finished
from hessabs.typing import MatVec, Params

DONE = "spectrum_state.json"
KRYLOV = "spectrum_state.npz"
DIRECTIONS = "spectrum_directions.npz"


def fingerprint(params: Params, sets: dict[str, list[dict[str, np.ndarray]]], options: dict[str, Any]) -> str:
    """Tell runs apart by what their spectra depend on.

    Args:
      params: The network.
      sets: Batches by the name of the set.
      options: What else the numbers depend on; JSON can hold it.

    Returns:
      A digest, in hexadecimal.
    """
    return finished.identify(arrays=finished.digest((params, sets)), options=options)


class SpectrumState:
    """The files of a spectrum under way.

    A class, against the house rule: it is the one handle on them.

    Args:
      workdir: The folder of the run. Files that carry another fingerprint are left aside, with a line on
        standard error.
      signature: From ``fingerprint``.
      seconds: Time between two saves of a Krylov state, 0 for one as often as products allow.
    """

    def __init__(self, workdir: pathlib.Path, signature: str, seconds: float) -> None:
        self._workdir, self._signature, self._seconds = workdir, signature, seconds
        self.done: dict[str, Any] = self._read_done()

    def keep(self, name: str, value: Any) -> None:
        """Keep a result that is whole.

        Args:
          name: What it is; ``done`` has it under this name from now on, and in later processes.
          value: What JSON can hold. With NaN in it, it is kept for this process only.
        """
        self.done[name] = value
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:
            return
        metrics.write_json(self._workdir / DONE, {"fingerprint": self._signature, "done": self.done})

    def eigsh(
        self, name: str, matvec: MatVec, v0: Params, k: int, *, max_matvecs: int, **options: Any
    ) -> curvature.EigshResult:
        """Call ``hessabs.curvature.eigsh``, saving its state at intervals and going on from what was saved.

        Args:
          name: Of the matrix.
          matvec: As in ``eigsh``.
          v0: As in ``eigsh``.
          k: As in ``eigsh``.
          max_matvecs: As in ``eigsh``, those before an interruption included.
          **options: As in ``eigsh``.

        Returns:
          The result, with the same bits whether the run was interrupted or not.
        """
        label = f"{name}, {k} pairs"
        state = self._read_krylov(label, sum(x.size for x in jax.tree.leaves(v0)))
        saved_at = time.perf_counter()

        def save(state: curvature.KrylovState) -> None:
            nonlocal saved_at
            if time.perf_counter() - saved_at >= self._seconds:
                self._write_krylov(label, state)
                saved_at = time.perf_counter()

        result = curvature.eigsh(matvec, v0, k, max_matvecs=max_matvecs, state=state, save=save, **options)
        (self._workdir / KRYLOV).unlink(missing_ok=True)
        return result

    def keep_directions(self, directions: Params) -> None:
        """Keep vectors for later.

        Args:
          directions: A pytree of arrays.
        """
        leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(directions))}
        self._write(DIRECTIONS, "directions", leaves)

    def directions(self, params: Params) -> Params | None:
        """Return the vectors that were kept, or None.

        Args:
          params: A pytree of the structure of one vector; kept leaves have one leading axis more.
        """
        leaves, treedef = jax.tree.flatten(params)
        saved = self._read(DIRECTIONS, "directions", [str(i) for i in range(len(leaves))])
        if saved is None or any(saved[str(i)].shape[1:] != x.shape for i, x in enumerate(leaves)):
            return None
        return jax.tree.unflatten(treedef, [saved[str(i)] for i in range(len(leaves))])

    def close(self) -> None:
        """Remove the files: the spectrum is complete."""
        for name in (DONE, KRYLOV, DIRECTIONS):
            (self._workdir / name).unlink(missing_ok=True)

    def _read_done(self) -> dict[str, Any]:
        path = self._workdir / DONE
        if not path.exists():
            return {}
        try:
            saved = json.loads(path.read_text())
            if saved["fingerprint"] == self._signature:
                return dict(saved["done"])
            _aside(path, _ANOTHER)
        except (ValueError, KeyError, TypeError) as error:
            _aside(path, f"it cannot be read ({error})")
        return {}

    def _write_krylov(self, name: str, state: curvature.KrylovState) -> None:
        fields = {field: np.asarray(value) for field, value in state._asdict().items()}
        fields["basis"] = fields["basis"][: int(state.built)]
        self._write(KRYLOV, name, fields)

    def _read_krylov(self, name: str, size: int) -> curvature.KrylovState | None:
        fields = self._read(KRYLOV, name, curvature.KrylovState._fields)
        if fields is None:
            return None
        rows, built = len(fields["projected"]), int(fields["built"])
        if fields["basis"].shape != (built, size) or built > rows:
            _aside(
                self._workdir / KRYLOV, f"its basis has shape {fields['basis'].shape}, not ({built}, {size})"
            )
            return None
        basis = np.zeros((rows, size), fields["basis"].dtype)
        basis[:built] = fields["basis"]
        print(f"{name}: going on after {int(fields['num_matvecs'])} products.", file=sys.stderr)
        return curvature.KrylovState(**{**fields, "basis": basis})

    def _write(self, file_name: str, name: str, fields: dict[str, np.ndarray]) -> None:
        path = self._workdir / file_name
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, name=np.array(f"{self._signature} {name}"), **fields)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def _read(self, file_name: str, name: str, fields: Iterable[str]) -> dict[str, np.ndarray] | None:
        path = self._workdir / file_name
        if not path.exists():
            return None
        try:
            # Opened here: what NumPy opens stays open when it is no archive.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                if str(saved["name"]) == f"{self._signature} {name}":
                    return {field: saved[field] for field in fields}
            _aside(path, _ANOTHER)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            _aside(path, f"it cannot be read ({error})")
        return None


_ANOTHER = "it belongs to another matrix, or to other params, data or options"


def _aside(path: pathlib.Path, reason: str) -> None:
    print(f"{path} is left aside: {reason}.", file=sys.stderr)
