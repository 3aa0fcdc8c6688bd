"""SIGTERM and Ctrl-C as a request that the loop fulfils between two updates, and as an end after it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A run that ended early, as it was asked to. No ``Exception``, for it may come anywhere, as Ctrl-C does.

    ``signum`` is the signal that asked; a shell expects the exit status 128 + signum.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Request:
    """The signal that asked the run to end, if one did."""

    signum: int | None = None
    saved: str | None = (
        None  # where, in a sentence, when only evaluation is left: a signal then ends it at once
    )


@contextlib.contextmanager
def catch_signals() -> Iterator[Request]:
    """Note the first SIGTERM or Ctrl-C inside the block; the second one ends the process at once.

    Outside the main thread, where Python allows no handlers, signals keep what they do.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(signum: int, frame: FrameType | None) -> None:
        request.signum = signum
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if request.saved is not None:
            raise Interrupted(request.saved, signum)

    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
