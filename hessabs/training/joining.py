"""The processes of a run, each of which runs the whole program on its devices: how they join, and what one does
when another one has died: it says so in one line, and ends.

JAX's coordination service has no hook for a death: its C++ prints a report and a stack trace, and aborts. So
what C++ writes to standard error goes through a filter that keeps such a report back, and the signal of the
abort ends the process with the line instead. What else is written passes, and an abort for another reason is
one.
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
from typing import Annotated, Any, NamedTuple, NoReturn

import jax

HEARTBEAT_SECONDS = 20
"""A process that says nothing for so long is taken for dead, and the others end."""

STATUS = 1
"""The exit status of a process that has lost another one."""

DETECT = "detect"
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


class Processes(NamedTuple):
    """How the processes of a run find each other."""

    coordinator: Annotated[
        str | None, "host:port of process 0, for several processes; detect: from the cluster's environment"
    ] = None
    num_processes: Annotated[int | None, "number of processes"] = None
    process_id: Annotated[int | None, "number of this process, from 0"] = None


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Join the processes of a run, if there are several; must come before JAX is used.

    ``"detect"`` takes all three from a cluster environment that JAX knows (Slurm, Open MPI, Kubernetes, Cloud
    TPU).
    """
    if coordinator is None:
        if num_processes is not None or process_id is not None:
            raise ValueError(
                "`coordinator` is required with num_processes and process_id: pass --coordinator=host:port, "
                "an address of process 0."
            )
        return
    if coordinator == DETECT:
        _initialize()
        return
    if num_processes is None or process_id is None:
        raise ValueError(
            f"`num_processes` and `process_id` are required with coordinator, got {num_processes} and "
            f"{process_id}; --coordinator={DETECT} takes them from the cluster's environment."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(f"`process_id` must lie in [0, num_processes={num_processes}), got {process_id}.")
    _initialize(coordinator_address=coordinator, num_processes=num_processes, process_id=process_id)


def _initialize(**options: Any) -> None:
    if not _WATCHING:
        _WATCHING.append(_Filter())
        # Python's own handlers wait for the main thread, which an abort does not leave the time for.
        ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of the CPU backend alone
    take_turns()
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for a notice
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS, **options)


def take_turns() -> None:
    """Let several CPU devices run one program at a time; must come before JAX is used.

    A collective keeps a thread waiting for the other devices, of the few that run programs: with two programs
    in flight the devices can wait for each other for ever. Programs whose arguments are still being computed
    are in flight nevertheless: see ``hessabs.training.mesh.wait_for``. Other backends are not touched.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


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
