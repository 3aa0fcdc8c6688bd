"""Seconds of compilation: those of nested functions once, those of another thread apart."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from hessabs import compiling
from hessabs.training.clock import Clock


def slow_to_trace(seconds, inner=None):
    def function(x):
        time.sleep(seconds)  # while it is traced, and never when it runs
        return x + 1 if inner is None else inner(x) * 2

    return jax.jit(function)


def test_what_is_nested_counts_once():
    function = slow_to_trace(0.2, slow_to_trace(0.3))
    before, start = compiling.seconds(), time.perf_counter()
    jax.block_until_ready(function(jnp.ones(3)))
    spent, wall = compiling.seconds() - before, time.perf_counter() - start
    assert 0.5 < spent <= wall
    before = compiling.seconds()
    jax.block_until_ready(function(jnp.ones(3)))
    assert compiling.seconds() == before


def test_each_thread_has_its_own_and_waiting_counts():
    own, all_of_them = compiling.seconds(), compiling.seconds(everywhere=True)
    thread = threading.Thread(target=lambda: slow_to_trace(0.3)(1.0))
    thread.start()
    thread.join()
    assert compiling.seconds() == own
    assert compiling.seconds(everywhere=True) - all_of_them > 0.3
    with compiling.waiting():
        time.sleep(0.1)
    assert compiling.seconds() - own > 0.1


def test_a_clock_keeps_it_apart_and_loses_nothing():
    clock, start = Clock(), time.perf_counter()
    with clock.measure("eval"):
        slow_to_trace(0.3)(1.0)
        time.sleep(0.1)
    slow_to_trace(0.2)(1.0)
    saved = clock.save()
    again = Clock(saved)  # in another process
    slow_to_trace(0.1)(1.0)
    for each, compiled in ((clock, 0.6), (again, 0.6)):
        seconds = each.end_epoch()
        assert seconds["compile"] > compiled
        assert 0.1 <= seconds["eval"] < 0.3
        assert sum(seconds.values()) == pytest.approx(time.perf_counter() - start, abs=0.3)
        assert each.end_epoch()["compile"] == 0
