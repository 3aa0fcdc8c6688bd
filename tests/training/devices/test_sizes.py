"""Several micro-batches at once: the same examples, the same decisions, few compilations, none in the loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.cpu import footprint
from hessabs.models import mlp
from hessabs.training import sizes as sizes_lib
from hessabs.training import tasks
from hessabs.training.loop import train
from hessabs.training.sizes import Sizes, make_sizes, memory_budget
from tests.training.runs import MICRO, N, digits_task, like, make_run, small_digits

pytestmark = pytest.mark.sampled
SETTINGS = {
    "epochs": 6,
    "max_batch_size": 16 * MICRO,
    "lr_decay_epochs": (3, 5),
    "hessian_batch_size": 32,
    "remainder": "keep",
    "measure_every": 7 * MICRO,
}
EXACT = ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction")


@pytest.fixture(scope="module")
def base():
    """A run whose compiled functions those of this module share."""
    return make_run(**SETTINGS, micro_batch="auto")


@pytest.fixture(scope="module")
def auto(base):
    return train(like(base, **SETTINGS, micro_batch="auto"))


def assert_close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=2e-5), got, want)


def assert_same_course(got, want):
    for one, other in zip(got.records, want.records, strict=True):
        assert [one[name] for name in EXACT] == [other[name] for name in EXACT]
    assert want.records[-1]["batch_size"] > 8 * MICRO  # it has grown
    assert_close(got.params, want.params)


@pytest.mark.slow
def test_auto_is_fixed_up_to_rounding(base, auto):
    assert_same_course(auto, train(like(base, **SETTINGS, micro_batch="fixed")))


@pytest.mark.slow
def test_auto_is_fixed_up_to_rounding_where_batches_are_no_power_of_two():
    settings = {"method": "gg", "epochs": 6, "lr_decay_epochs": (1, 2), "growth_factor": 5.0}
    settings["max_batch_size"] = 12 * MICRO
    base = make_run(**settings, micro_batch="auto")
    one, other = (train(like(base, **settings, micro_batch=kind)) for kind in ("auto", "fixed"))
    assert_same_course(one, other)


@pytest.mark.slow
def test_compilations_are_logarithmic_and_bits_the_same_twice(base, auto):
    again = train(like(base, **SETTINGS, micro_batch="auto"))
    growth = auto.records[-1]["batch_size"] // MICRO
    assert growth == 16
    kinds = 2  # with and without adversarial examples
    for count in again.summary["compilations"].values():
        assert count <= kinds * (1 + math.log2(growth))
    jax.tree.map(np.testing.assert_array_equal, auto.params, again.params)


@pytest.mark.slow
def test_programs_are_compiled_before_they_are_called():
    # Functions of this test's own: nothing that another test has compiled is called here.
    task = tasks.linen(mlp(10, (9,)), small_digits())
    run = make_run(task, **SETTINGS, micro_batch="auto", max_micro_batch_size=4 * MICRO)
    state, functions = run.state, run.functions
    with make_sizes(run, state) as sizes:
        sizes.prepare(4)
        assert [sizes.choose(count) for count in (1, 2, 3, 4, 7, 25)] == [1, 2, 2, 4, 4, 4]
    totals = functions.begin(state)
    arrays = {**run.task.train.take(np.arange(N)), "weight": np.ones(N, np.float32)}
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for count in (4, 2):
            batch = jax.tree.map(lambda x, n=count * MICRO: x[:n], arrays)
            totals = functions.add(state, totals, batch, None, 0)
            totals = functions.add(state, totals, batch, 0.125, count)
        assert compiled == []
        jax.jit(lambda x: x * 2)(jnp.ones(3))  # the listener hears what is compiled
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def doubled(state, totals, batch):
    return state + totals + jnp.sum(jnp.outer(batch, batch))


def make_small(function, rows, limit):
    """Sizes of a function of one row of numbers, with ``rows`` of them in a micro-batch."""
    zero = jnp.zeros(())
    return Sizes(jax.jit(function), [(zero, zero, np.ones(rows, np.float32))], limit)


@pytest.mark.parametrize(("limit", "budget", "want"), [(4, 2**40, 4), (None, 2**40, 64), (None, 0, 1)])
def test_limits(monkeypatch, limit, budget, want):
    monkeypatch.setattr(sizes_lib, "memory_budget", lambda: budget)
    with make_small(doubled, 3, limit) as sizes:
        assert sizes.choose(100) == want


@pytest.mark.parametrize(("divides", "want"), [(True, [1, 2, 2, 4, 4, 4]), (False, [1, 1, 1, 4, 4, 4])])
def test_several_devices_have_one_micro_batch_each(divides, want):
    with Sizes(jax.jit(doubled), (), 4, devices=4, divides=divides) as sizes:
        assert [sizes.choose(count) for count in (1, 2, 3, 4, 7, 25)] == want


def test_the_memory_of_the_program_is_the_limit(monkeypatch):
    def function(state, totals, batch):
        return state + totals + jnp.sort(batch)[0]

    fits = jax.jit(function).lower(jnp.zeros(()), jnp.zeros(()), np.ones(8 * 1000, np.float32)).compile()
    memory = fits.memory_analysis()
    budget = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    monkeypatch.setattr(sizes_lib, "memory_budget", lambda: budget)
    with make_small(function, 1000, None) as sizes:
        assert sizes.choose(64) == 8


def test_memory_budget_is_part_of_the_memory():
    assert 2**20 < memory_budget() < 2**45


def test_an_error_of_the_compiler_is_not_taken_for_a_lack_of_memory():
    def broken(state, totals, batch):
        raise RuntimeError("the network itself")

    with make_small(broken, 3, None) as sizes, pytest.raises(RuntimeError, match="the network itself"):
        sizes.choose(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"micro_batch": "fast"}, "must be one of fixed, auto, got 'fast'"),
        ({"micro_batch": "auto", "method": "gns", "noise_scale": 4.0}, "must be fixed where micro-batches are"),
        ({"max_micro_batch_size": 256}, "pass --micro_batch=auto"),
        *(
            ({"micro_batch": "auto", "max_micro_batch_size": size}, f"=8 times a power of two, got {size}")
            for size in (4, 24, 20)
        ),
    ],
)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_run(digits_task(), **settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cached", "most"),
    [
        (256 * 4 * 5 * MICRO, 4),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in ((0, 1), (256 * 4 * 40 * MICRO, 16))),
    ],
)
def test_a_cpu_takes_what_its_caches_hold(base, monkeypatch, cached, most):
    monkeypatch.setattr(footprint, "CACHED", cached)  # 256 hidden units are the largest array of an example
    taken = []
    choose = Sizes.choose
    monkeypatch.setattr(Sizes, "choose", lambda self, count: taken.append(choose(self, count)) or taken[-1])
    train(like(base, **SETTINGS, micro_batch="auto"))
    assert max(taken) == most
    taken.clear()
    train(like(base, **SETTINGS, micro_batch="auto", max_micro_batch_size=8 * MICRO))  # a flag holds
    assert max(taken) == 8
