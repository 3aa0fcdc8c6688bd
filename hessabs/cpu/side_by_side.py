"""The parts of a loop that Python drives, side by side, each in a thread.

XLA runs the operations of a program on the CPU one after the other, and some of them, convolutions among them,
on one core. Programs of two threads fill the gaps of each other.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

A = TypeVar("A")
B = TypeVar("B")


def num_threads() -> int:
    """Say how many threads a loop that Python drives is worth: the cores, or 1 where XLA is told to use one."""
    if "--xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", ""):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut(num_rows: int, least: int, most: int) -> list[slice]:
    """Cut the rows of a loop, which do not influence each other, into parts of one size: they compile once.

    A part is worth its overhead from ``least`` rows on and has ``most`` at most: one for each thread, else a
    multiple of the threads. The last may begin within the one before it.

    Example:
      >>> cut(10, 4, 4)[-1]
      slice(7, 10, None)
    """
    threads = num_threads()
    number = max(1, min(threads, num_rows // least))
    if num_rows > number * most:
        number = threads * -(-num_rows // (threads * most))
    size = -(-num_rows // number)
    return [slice(max(0, min(i, num_rows - size)), min(i + size, num_rows)) for i in range(0, num_rows, size)]


def run(function: Callable[[A], B], parts: Sequence[A]) -> list[B]:
    """Call a function for each part, on as many threads as there are cores, under the settings of JAX here.

    The function must not meet somebody's tracers: they belong to this thread.

    Example:
      >>> with jax.numpy_rank_promotion("raise"):
      ...     run(lambda part: (part, jax.config.jax_numpy_rank_promotion), [1, 2])
      [(1, 'raise'), (2, 'raise')]
    """
    here = dict(jax.config.values)
    with ThreadPoolExecutor(min(len(parts), num_threads()), "hessabs") as pool:
        # What a new thread sees is what the process has set; what differs was set by a context manager, here.
        there = pool.submit(lambda: dict(jax.config.values)).result()
        settings = {name: value for name, value in here.items() if value != there[name]}
        managers: dict[str, Any] = {name: getattr(jax, name.removeprefix("jax_"), None) for name in settings}
        # Nothing public to set it with, or JAX is told to stay on this thread.
        if None in managers.values() or "jax_thread_guard" in settings:
            return [function(part) for part in parts]

        def call(part: A) -> B:
            with contextlib.ExitStack() as stack:
                for name, value in settings.items():
                    stack.enter_context(managers[name](value))
                return function(part)

        return list(pool.map(call, parts))
