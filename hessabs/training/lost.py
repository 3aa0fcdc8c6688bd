"""What a process does when another one of its run has died: it says so in one line, and ends.

JAX's coordination service has no hook for it: its C++ prints a report and a stack trace, and aborts. So what
C++ writes to standard error goes through a filter that keeps such a report back, and the signal of the abort
ends the process with the line instead. What else is written passes, and an abort for another reason is one.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax

STATUS = 1
"""The exit status of a process that has lost another one."""

_SECONDS_TO_PART = 20.0  # for the others to hear of an error that only one process has
_MARK = b"hessabs: end of standard error"
_LOG = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d")
_REPORT = re.compile(rb"coordination_service|preemption_sync|JAX distributed service detected fatal errors")
_LOSS = re.compile(
    r"gloo|nccl|coordination service|UNAVAILABLE|connection (closed|reset|refused)", re.IGNORECASE
)
_LOST = re.compile(
    rb"[Tt]ask (\d+) heartbeat|stopped sending heartbeats\):\n(\d+)|(the leader task was|leader \()"
)


class _Filter:
    """Standard error of C++, without the report of a loss."""

    def __init__(self) -> None:
        self._terminal = os.dup(2)
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        # Python writes past the filter.
        sys.stderr = os.fdopen(self._terminal, "w", 1, errors="backslashreplace", closefd=False)
        self.report = b""
        self._once = threading.Lock()
        self._caught_up = threading.Event()
        threading.Thread(target=self._pass_on, args=(reading,), name="hessabs-stderr", daemon=True).start()
        atexit.register(self._catch_up)

    def _catch_up(self) -> None:
        os.write(2, _MARK + b"\n")  # and goes on: the processes part after this
        self._caught_up.wait(1)

    def _pass_on(self, reading: int) -> None:
        with open(reading, "rb", buffering=0) as pipe:
            rest, reporting = b"", False
            while content := pipe.read(1 << 16):
                *lines, rest = (rest + content).split(b"\n")
                for line in lines:
                    if line == _MARK:
                        self._caught_up.set()
                        continue
                    if _LOG.match(line):
                        reporting = _REPORT.search(line) is not None
                    if reporting:
                        self.report += line + b"\n"
                    else:
                        os.write(self._terminal, line + b"\n")
            os.write(self._terminal, rest)

    def aborted(self) -> None:
        """Say that a process is lost, if that is what the abort is for; called by the thread that aborts."""
        time.sleep(0.2)  # until the report has come through
        if self.report:
            self.leave("")

    def leave(self, reason: str) -> NoReturn:
        """Say it, once, and end the process."""
        while not self._once.acquire(blocking=False):
            time.sleep(1)  # another thread is about to end it
        found = _LOST.search(self.report)
        number = None if found is None else (found[1] or found[2] or b"0").decode()
        which = "another process" if number is None else f"process {number}"
        text = (
            f"hessabs: {which} of this run has died or cannot be reached{reason}; start all of them again with "
        )
        os.write(self._terminal, f"{text}--resume.\n".encode())
        os._exit(STATUS)


_WATCHING: list[_Filter] = []  # one a process, as there is one standard error
_ABORTED = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: _WATCHING[0].aborted())


def watch() -> None:
    """Watch for the loss of another process; must come before the processes join."""
    if not _WATCHING:
        _WATCHING.append(_Filter())
        # Python's own handlers wait for the main thread, which an abort does not leave the time for.
        ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """End this process where the block fails because another one is lost, and soon where it fails alone.

    A process that fails alone leaves the others in the middle of a collective, waiting: it does not wait for
    them to part.
    """
    try:
        yield
    except BaseException as error:
        if _WATCHING and jax.process_count() > 1:
            if isinstance(error, Exception) and _LOSS.search(str(error)):
                _WATCHING[0].leave(f" ({str(error).splitlines()[0][:200]})")
            timer = threading.Timer(_SECONDS_TO_PART, os._exit, [STATUS])
            timer.daemon = True
            timer.start()
        raise
