"""Memory that the C library holds on to.

Every checkpoint is written by threads of its own. glibc gives threads heaps of their own, and keeps what is
freed there: a long run that saves often grows by some 200 KB a checkpoint although nothing in it does.
"""

import ctypes
import functools
from collections.abc import Callable


def give_back() -> None:
    """Return freed memory to the system; where the C library is not glibc, do nothing.

    Example:
      >>> give_back()
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no CDLL(None)
        return None
