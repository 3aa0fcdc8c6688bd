"""The runs of a grid in one file of JSON lines, ``runs.jsonl``.

A line for each commit says what all its runs share (settings, versions, hardware). A line for each run has the
settings that are its own, its numbers, its records by epoch as columns, and what was measured of the trained
network. Floats have nine digits, which is all of a float32; seconds have six.
"""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FILE = "runs.jsonl"
_MEASURED = (
    "seed",
    "updates",
    "samples",
    "final_batch_size",
    "eigenvalue",
    "eigenvalue_residual",
    "compilations",
)


class Run(NamedTuple):
    """A finished run."""

    name: str  # LABEL/seedN
    summary: dict[str, Any]  # settings, results, and where they come from
    records: list[dict[str, Any]]  # by epoch
    measured: dict[str, dict[str, Any]]  # of the trained network: "curvature", "robustness"

    @property
    def label(self) -> str:
        """Its place in the grid."""
        return self.name.rpartition("/")[0]

    @property
    def commit(self) -> str:
        """The commit that trained it."""
        return str(self.summary["commit"])


def read(results: pathlib.Path) -> dict[str, Run]:
    """Read the runs of a grid by their names; none if there is no table yet."""
    path = results / FILE
    shared: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    for number, text in enumerate(path.read_text().splitlines() if path.exists() else (), start=1):
        try:
            line = json.loads(text)
            if "shared" in line:
                shared[line["commit"]] = line["shared"]
                continue
            summary = {**shared[line["commit"]], **line["summary"], "commit": line["commit"]}
            runs[line["run"]] = Run(line["run"], summary, _rows(line["epochs"]), line["measured"])
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number} is no run ({error!r}); restore it from git.") from error
    return runs


@contextlib.contextmanager
def changing(results: pathlib.Path) -> Iterator[dict[str, Run]]:
    """Yield the runs of a grid, to be changed by this process alone and then written, whole or not at all."""
    results.mkdir(parents=True, exist_ok=True)
    folder = os.open(results, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        runs = read(results)
        yield runs
        partial = results / f"{FILE}.partial"
        with partial.open("w") as file:
            file.writelines(f"{json.dumps(line, allow_nan=False)}\n" for line in _lines(runs))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(results / FILE)
    finally:
        os.close(folder)


def _lines(runs: Mapping[str, Run]) -> Iterator[dict[str, Any]]:
    for commit in sorted({run.commit for run in runs.values()}):
        mine = [run for _, run in sorted(runs.items()) if run.commit == commit]
        shared = {name: value for name, value in mine[0].summary.items() if _is_shared(name, value, mine)}
        yield {"commit": commit, "shared": _short(shared)}
        for run in mine:
            own = {k: v for k, v in run.summary.items() if k not in shared and k != "commit"}
            yield {
                "run": run.name,
                "commit": commit,
                "summary": _short(own),
                "epochs": _columns(run.records),
                "measured": _short(run.measured),
            }


def _is_shared(name: str, value: Any, runs: list[Run]) -> bool:
    if name in (*_MEASURED, "commit") or name.startswith("seconds") or name.endswith("_accuracy"):
        return False
    return all(name in run.summary and run.summary[name] == value for run in runs)


def _columns(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for record in records for name in record)
    return {name: [_short(record.get(name), name) for record in records] for name in names}


def _rows(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _short(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _short(item, key) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(item, name) for item in value]
    if not isinstance(value, float):
        return value
    digits = 6 if name.startswith("seconds") else 9
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
