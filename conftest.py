"""Four virtual CPU devices for every test of a session: the number is fixed once JAX has started."""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
# Two programs in flight can wait for each other in their collectives for ever on a machine of few cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")

import jax
import pytest


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compile without optimisation to the end of the file: for tests that compile much and compute little.

    The programs are dropped at the end: JAX would use them again where a later test runs the same function, and they
    round otherwise than those of the processes that it starts.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    jax.clear_caches()
