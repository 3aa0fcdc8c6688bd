"""Memory that the C library holds on to.

Every checkpoint is written by threads of its own. glibc gives threads heaps of their own, up to eight a core,
and keeps what is freed there: a long run that saves often grows by some 100 KB a checkpoint although nothing in
it does. Fewer heaps leave fewer gaps, and whole pages that are free can go back.
"""

import ctypes
import functools
import os
from collections.abc import Callable

_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def limit() -> None:
    """Let this process have as many heaps as cores, at least two; for its start, before there are threads.

    Where the C library is not glibc, or MALLOC_ARENA_MAX says how many, do nothing.
    """
    mallopt = _find("mallopt")
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_ARENA_MAX, max(2, os.cpu_count() or 1))


def give_back() -> None:
    """Return freed memory to the system; where the C library is not glibc, do nothing."""
    trim = _find("malloc_trim")
    if trim is not None:
        trim(0)


@functools.cache
def _find(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):  # another C library; Windows has no CDLL(None)
        return None
