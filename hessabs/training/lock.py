"""One run a folder: a lock that ends with its process, however that ends."""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator

LOCK = ".lock"


@contextlib.contextmanager
def lock_workdir(workdir: pathlib.Path) -> Iterator[None]:
    """Keep other processes from running in a folder while the block runs.

    The kernel holds the lock (``fcntl``): it goes when the process is killed, and a process that this one
    forks does not inherit it. The file is removed when the block ends; one that a kill left locks nothing.

    Args:
      workdir: The folder; it is made if it is missing.

    Raises:
      BlockingIOError: If another process runs there, naming it.
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
