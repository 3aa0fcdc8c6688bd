"""Freed memory goes back to the system."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from hessabs.cpu import heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps it")
def test_a_heap_that_was_freed_goes_back():
    # Blocks below the size for which glibc asks the system each time, with one at the end that stays.
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    blocks = [libc.malloc(2**15) for _ in range(4000)]
    for block in blocks:
        ctypes.memset(block, 1, 2**15)
    kept = libc.malloc(2**10)
    for block in blocks:
        libc.free(block)
    before = _megabytes()
    heap.give_back()
    assert before - _megabytes() > 60  # of 125
    libc.free(ctypes.c_void_p(kept))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has many heaps")
@pytest.mark.parametrize("own", [None, "5"])
def test_threads_share_few_heaps(own):
    # Thirty threads that hold memory at once; malloc_info counts the heaps.
    script = """
import ctypes, threading
from hessabs.cpu import heap
heap.limit()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
everyone = threading.Barrier(30)
def hold():
    libc.malloc(1000)
    everyone.wait()
threads = [threading.Thread(target=hold) for _ in range(30)]
[t.start() for t in threads]
[t.join() for t in threads]
libc.malloc_info(0, ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w")))
libc.fflush(None)
"""
    environment = {**os.environ, "MALLOC_ARENA_MAX": own} if own else dict(os.environ)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert 1 < done.stdout.count(b"<heap ") <= int(own or max(2, os.cpu_count()))


def test_another_c_library_is_left_alone(monkeypatch):
    heap._find.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    heap.limit()
    heap.give_back()
    assert heap._find("malloc_trim") is None
    heap._find.cache_clear()


def _megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
