"""Freed memory goes back to the system."""

import ctypes
import platform

import pytest

from hessabs.training import heap


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


def test_another_c_library_is_left_alone(monkeypatch):
    heap._malloc_trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    heap.give_back()
    assert heap._malloc_trim() is None
    heap._malloc_trim.cache_clear()


def _megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
