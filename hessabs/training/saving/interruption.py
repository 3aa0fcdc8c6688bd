"""SIGTERM and Ctrl-C as a wish that the loop fulfils between two micro-batches, and as an end after it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A run that ended early, as it was asked to. No ``Exception``, for it may come anywhere, as Ctrl-C does.

    Attributes:
        signum: The signal that asked; a shell expects the exit status 128 + signum.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class Wish:
    """The signal that asked the run to end, if one did. A class, against the house rule: a handler sets it.

    Attributes:
        signum: The signal, or None.
        saved: Where the run is saved in a sentence, when nothing but its evaluation is left; a signal then ends
            it at once.
    """

    signum: int | None = None
    saved: str | None = None


@contextlib.contextmanager
def catch_signals() -> Iterator[Wish]:
    """Note the first SIGTERM or Ctrl-C inside the block; the second one ends the process at once.

    Outside the main thread, where Python allows no handlers, signals keep what they do.

    Yields:
      A ``Wish`` whose ``signum`` is None until a signal comes.
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(signum: int, frame: FrameType | None) -> None:
        wish.signum = signum
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if wish.saved is not None:
            raise Interrupted(wish.saved, signum)

    before = {signum: signal.signal(signum, note) for signum in _SIGNALS}
    try:
        yield wish
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
