"""The parts of a loop that Python drives, side by side, each in a thread.

XLA runs the operations of a program on the CPU one after the other, and some of them, convolutions among them,
on one core. Programs of two threads fill the gaps of each other.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax

A = TypeVar("A")
B = TypeVar("B")
_SETTINGS = (
    "debug_infs",
    "debug_nans",
    "default_device",
    "default_matmul_precision",
    "default_prng_impl",
    "enable_x64",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
)
"""What a caller may have set with a context manager, and a thread of its own would not see."""


def num_threads() -> int:
    """Say how many threads a loop that Python drives is worth."""
    if "--xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", ""):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cut(num_rows: int, least: int, most: int) -> list[slice]:
    """Cut the rows of a loop into parts of one size, so that they compile once.

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

    Example:
      >>> with jax.numpy_rank_promotion("raise"):
      ...     run(lambda part: (part, jax.config.jax_numpy_rank_promotion), [1, 2])
      [(1, 'raise'), (2, 'raise')]
    """
    settings = {name: getattr(jax.config, f"jax_{name}") for name in _SETTINGS}

    def call(part: A) -> B:
        with contextlib.ExitStack() as stack:
            for name, value in settings.items():
                stack.enter_context(getattr(jax, name)(value))
            return function(part)

    with ThreadPoolExecutor(min(len(parts), num_threads()), "hessabs-attack") as pool:
        return list(pool.map(call, parts))
