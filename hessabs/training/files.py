"""The folder of a run: what it writes there, lines of JSON and whole files, and what keeps others away."""

import contextlib
import csv
import errno
import fcntl
import io
import json
import math
import os
import pathlib
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from hessabs.terminal import printable


class RunFolder(NamedTuple):
    """Where a run is written."""

    workdir: Annotated[
        str | None, "folder for metrics.jsonl, summary.json, curves.png and the trained params"
    ] = None
    overwrite: Annotated[bool, "lose the run that workdir already holds"] = False


METRICS = "metrics.jsonl"
CONFIG = "config.json"  # what the run is: its settings, and where its factories lie
SUMMARY = "summary.json"
DIVERGED = "diverged.json"  # in place of a summary: what was not finite
CURVES = "curves.png"
PARAMS = "params"
CHECKPOINTS = "checkpoints"
EVENTS = "events.jsonl"
LOCK = ".lock"
CACHE = "cache"  # folder of what the commands that look at a run have finished
DERIVED = (  # what they make of a run, as patterns
    *(f"{name}*.{kind}" for name in ("attack", "transfer", "spectrum") for kind in ("json", "csv", "png")),
    "tracked.png",
)


def check_workdir(workdir: pathlib.Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless that may be lost, and one where nothing can be written."""
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"`workdir` must be a folder, but {there} is a file.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"`workdir` {workdir} cannot be used: nothing can be written in {there}; name another folder."
        )
    if not overwrite and any((workdir / name).exists() for name in (METRICS, SUMMARY, CHECKPOINTS)):
        raise FileExistsError(
            f"`workdir` {workdir} already holds a run; name another folder or pass --overwrite "
            "(overwrite=True) to lose it, or --resume (Durability(resume=True)) to go on with it."
        )


@contextlib.contextmanager
def usable(flag: str, path: pathlib.Path | None, then: str = "") -> Iterator[None]:
    """Say which flag names the place where the block cannot write, and what to do: make room, and ``then``."""
    try:
        yield
    except OSError as error:
        if path is None or error.errno is None or isinstance(error, BrokenPipeError):
            raise  # it says already what to do
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        where = f" ({error.filename})" if error.filename not in (None, str(path)) else ""
        advice = f"make room{then}" if full else "name another place"
        raise OSError(f"`{flag}` {path} cannot be used: {error.strerror}{where}; {advice}.") from error


def start_workdir(workdir: pathlib.Path) -> None:
    """Make the folder of a run and remove what an earlier run wrote there, and what was made of it."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, METRICS, SUMMARY, DIVERGED, CURVES, EVENTS, "metrics.csv", "wandb.json"):
        (workdir / name).unlink(missing_ok=True)
    for name in (PARAMS, CHECKPOINTS, "tensorboard"):
        if (workdir / name).exists():
            shutil.rmtree(workdir / name)
    remove_derived(workdir)


def remove_derived(workdir: pathlib.Path) -> None:
    """Remove what was made of the network of a run, which is about to be another one."""
    for pattern in DERIVED:
        for path in workdir.glob(pattern):
            path.unlink()
    if (workdir / CACHE).exists():
        shutil.rmtree(workdir / CACHE)


def refuse_links(workdir: pathlib.Path) -> None:
    """Refuse a folder with symbolic links, of somebody else say: what is written through one lands outside."""
    for path in workdir.rglob("*"):
        if path.is_symlink():
            raise ValueError(f"`workdir` {workdir} must hold no links to go on with, got {path}; remove it.")


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Keep other processes from running in a folder while the block runs; BlockingIOError names who does.

    The kernel holds the lock (``fcntl``): it goes when the process is killed, and a process that this one
    forks does not inherit it. The file is removed when the block ends; one that a kill left locks nothing.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / LOCK
    file = _open_locked(path)
    try:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def lock_owner(workdir: pathlib.Path) -> str | None:
    """Say which other process runs in a folder; None for none. One that asks about itself loses its lock."""
    try:
        with (workdir / LOCK).open() as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return file.read(200).strip() or "another process"
    except OSError:  # no lock, or a file system without any
        pass
    return None


def _open_locked(path: pathlib.Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # ENOLCK, say: of a file system without locks
                os.close(file)
                raise
            owner = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise BlockingIOError(
                f"`workdir` {path.parent} is in use by {owner}: two runs cannot share it; name another folder, "
                "or wait for that run to end."
            ) from None
        # The run that held it has removed the file: a newcomer would lock another one.
        os.close(file)


def _is_at(file: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def say(text: str) -> None:
    """Tell the user, on standard error, something that ends nothing."""
    print("hessabs: " + printable(" ".join(text.split())), file=sys.stderr)


def append_line(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Append a record to a file of JSON lines, on disk when the call returns."""
    with path.open("a") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())


def write_lines(path: pathlib.Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all; the bytes are those of appending the records."""
    _write(path, "".join(map(_line, records)))


def write_json(path: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    _write(path, json.dumps(_plain(record), indent=2, allow_nan=False) + "\n")


def write_csv(
    path: pathlib.Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write a table as CSV, whole or not at all; ``columns``: fields that it has, None for all there are."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    _write(path, text.getvalue())


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Read the records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(_plain(record), allow_nan=False) + "\n"


def _write(path: pathlib.Path, text: str) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    try:
        with partial.open("w", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # of a disk that is full
        raise
    partial.replace(path)


def _plain(value: Any) -> Any:
    """Make numbers that are not finite null, for JSON has none, and NumPy's Python's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
