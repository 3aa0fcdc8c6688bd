"""Parts of a loop in threads: they hold every row, and see what the caller has set."""

import threading

import jax
import pytest

from hessabs.cpu import side_by_side


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(side_by_side, "num_threads", lambda: 2)


def flipped():
    """Every switch of JAX that has a public context manager, and some of its other settings."""
    switches = {
        name: not value
        for name, value in jax.config.values.items()
        if isinstance(value, bool) and hasattr(jax, name.removeprefix("jax_"))
    }
    return {
        **switches,
        "jax_default_matmul_precision": "bfloat16",
        "jax_numpy_rank_promotion": "raise",
        "jax_default_prng_impl": "rbg",
        "jax_transfer_guard": "log",
    }


def seen(_):
    return dict(jax.config.values), threading.get_ident()


@pytest.mark.parametrize(("name", "value"), [pair for pair in flipped().items() if "thread" not in pair[0]])
def test_threads_see_what_a_context_manager_has_set(two_threads, name, value):
    before = dict(jax.config.values)
    with getattr(jax, name.removeprefix("jax_"))(value):
        here = dict(jax.config.values)
        found = side_by_side.run(seen, [1, 2])
    assert here != before
    for there, thread in found:
        assert there == here
        assert thread != threading.get_ident()
    assert dict(jax.config.values) == before


def test_a_setting_without_a_public_context_manager_keeps_the_parts_on_this_thread(two_threads, monkeypatch):
    with jax.numpy_rank_promotion("raise"):
        monkeypatch.setattr(jax, "numpy_rank_promotion", None)
        found = side_by_side.run(seen, [1, 2])
    assert [thread for _, thread in found] == 2 * [threading.get_ident()]
    assert found[0][0]["jax_numpy_rank_promotion"] == "raise"


def test_number_of_threads(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(side_by_side.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert side_by_side.num_threads() == 4
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    assert side_by_side.num_threads() == 1


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("most", [32, 100, 10_000])
def test_parts_hold_every_row_and_share_a_size(monkeypatch, threads, most):
    monkeypatch.setattr(side_by_side, "num_threads", lambda: threads)
    for num_rows in (1, 2, 31, 127, 128, 255, 256, 257, 1000, 10_007):
        parts = side_by_side.cut(num_rows, 128, most)
        assert {i for part in parts for i in range(part.start, part.stop)} == set(range(num_rows))
        (size,) = {part.stop - part.start for part in parts}
        assert size <= most
        assert [part.start for part in parts[:-1]] == [size * i for i in range(len(parts) - 1)]
        if num_rows <= most:
            assert len(parts) == max(1, min(threads, num_rows // 128))
