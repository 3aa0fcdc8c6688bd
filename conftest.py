"""Four virtual CPU devices for every test of a session, quick compilation, and programs that outlive it."""

import os
import pathlib
from collections.abc import Iterator
from importlib import metadata

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # fixed once JAX has started
# Two programs in flight can wait for each other in their collectives for ever on a machine of few cores.
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")

# Tests compile for longer than they compute, so without optimisation, here and in processes that they start, so
# all round alike. `make test-slow` runs those marked `optimised` once more, as users compile.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"  # a worker has one core
    # Half of a compilation; later versions lack the flag.
    + (" --xla_cpu_use_fusion_emitters=false" if metadata.version("jaxlib").startswith("0.10.") else ""),
)

import jax
import jax.extend
import pytest

# Tests compile for longer than they compute, and many the same programs. JAX does not write a file of its cache
# at once, so each worker has its own, and another one for the processes that it starts, some of which it kills.
_CACHE = pathlib.Path(__file__).parent / ".jax_cache" / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{_CACHE}-processes")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

_MANY = 250  # programs; a megabyte or two each, with what JAX keeps beside them


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a parametrised test marked ``sampled`` leave all but the first case to the slow tests."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        slow = any(item.get_closest_marker(name) for name in ("slow", "realdata"))
        if item.get_closest_marker("sampled") and not slow:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        for item in several[1:]:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def four_devices() -> None:
    """Have four devices; an accelerator of fewer skips the test, too few virtual ones fail it."""
    if jax.default_backend() != "cpu" and jax.device_count() < 4:
        pytest.skip("needs four devices")
    assert jax.device_count() >= 4, "the tests need 4 devices: JAX_NUM_CPU_DEVICES=4"


@pytest.fixture(scope="module", autouse=True)
def drop_programs() -> Iterator[None]:
    """Drop what files have compiled once it is many programs: all together would take gigabytes."""
    yield
    if len(jax.extend.backend.get_backend().live_executables()) > _MANY:
        jax.clear_caches()
