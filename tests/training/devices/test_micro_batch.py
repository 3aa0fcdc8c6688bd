"""Several micro-batches at once: the same examples, the same decisions, few compilations, none in the loop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.cpu import footprint
from hessabs.data import Dataset, load
from hessabs.models import mlp
from hessabs.training import Config, set_up, train
from hessabs.training.config import check, resolve
from hessabs.training.devices import micro_batch as micro_batch_lib
from hessabs.training.devices.micro_batch import AtOnce, make_at_once, memory_budget
from hessabs.training.robust import make_inner, mixing
from hessabs.training.setup import init_model, make_controller, make_optimizer
from hessabs.training.state import init_state
from hessabs.training.step import make_step_functions

MICRO, N = 8, 200  # 25 micro-batches an epoch: odd, so that epochs end inside updates
CONFIG = Config(
    dataset="digits",
    method="absa",
    epochs=6,
    batch_size=2 * MICRO,
    micro_batch_size=MICRO,
    max_batch_size=16 * MICRO,
    lr=0.02,
    lr_decay_epochs=(3, 5),
    patience=1,
    hessian_batch_size=32,
    epsilon=0.05,
)


@functools.cache
def data():
    digits = load("digits")
    return Dataset(
        "digits",
        {name: array[:N] for name, array in digits.train.items()},
        {name: array[:30] for name, array in digits.test.items()},
        10,
    )


@functools.cache
def base():
    """A set-up whose compiled functions and first params the runs of this module share."""
    return set_up(CONFIG._replace(micro_batch="auto"), data())


def run_with(**changes):
    config = resolve(CONFIG._replace(**changes), N)
    run = base()._replace(config=config, state=jax.tree.map(jnp.copy, base().state))  # a run donates its state
    return train(run._replace(controller=make_controller(config, run.epoch_examples)))


@pytest.mark.parametrize(
    "changes",
    [
        {"keep_remainder": True, "measure_every": 7 * MICRO},
        {"method": "gg", "lr_decay_epochs": (1, 2), "growth_factor": 5.0, "max_batch_size": 12 * MICRO},
    ],
    ids=["absa", "gg"],
)
def test_auto_is_fixed_up_to_rounding(changes):
    auto, fixed = (run_with(micro_batch=kind, **changes) for kind in ("auto", "fixed"))
    for got, want in zip(auto.records, fixed.records, strict=True):
        for name in ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction"):
            assert got[name] == want[name]
    assert fixed.records[-1]["batch_size"] > 8 * MICRO  # it has grown
    for got, want in zip(jax.tree.leaves(auto.params), jax.tree.leaves(fixed.params), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5)


def test_compilations_are_logarithmic_and_bits_the_same_twice():
    one, two = run_with(micro_batch="auto"), run_with(micro_batch="auto")
    growth = one.records[-1]["batch_size"] // MICRO
    assert growth == 16
    for count in two.summary["compilations"].values():
        assert count <= 1 + math.log2(growth)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_programs_are_compiled_before_they_are_called():
    # Functions of this test's own: nothing that another test has compiled is called here.
    objective = mixing(make_inner("fgsm", 0.1), 0.25, MICRO)
    functions = make_step_functions(mlp(10, (9,)), make_optimizer(CONFIG), objective)
    params, _ = init_model(mlp(10, (9,)), CONFIG, data())
    config = base().config._replace(max_micro_batch_size=4 * MICRO)
    run = base()._replace(config=config, functions=functions)
    state = init_state(params, {}, make_optimizer(CONFIG))
    with make_at_once(run, state) as at_once:
        at_once.prepare(4)
        assert [at_once.choose(count) for count in (1, 2, 3, 4, 7, 25)] == [1, 2, 2, 4, 4, 4]
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        for count in (4, 2):
            batch = jax.tree.map(lambda x, n=count * MICRO: x[:n], {**data().train, "weight": np.ones(N, "f")})
            state = functions.accumulate(state, batch)
            state = functions.accumulate_adversarial(state, batch, 0.125)
        assert compiled == []
        jax.jit(lambda x: x * 2)(jnp.ones(3))  # the listener hears what is compiled
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def doubled(state, batch):
    return state + jnp.sum(jnp.outer(batch, batch))


@pytest.mark.parametrize(("limit", "budget", "want"), [(4, 2**40, 4), (None, 2**40, 64), (None, 0, 1)])
def test_limits(monkeypatch, limit, budget, want):
    monkeypatch.setattr(micro_batch_lib, "memory_budget", lambda: budget)
    with AtOnce({"f": (jax.jit(doubled), np.ones(3, np.float32), ())}, jnp.zeros(()), limit) as at_once:
        assert at_once.choose(100) == want


def test_the_memory_of_the_program_is_the_limit(monkeypatch):
    function = jax.jit(lambda state, batch: state + jnp.sort(batch)[0])
    fits = function.lower(jnp.zeros(()), np.ones(8 * 1000, np.float32)).compile().memory_analysis()
    budget = fits.argument_size_in_bytes + fits.output_size_in_bytes + fits.temp_size_in_bytes
    monkeypatch.setattr(micro_batch_lib, "memory_budget", lambda: budget)
    with AtOnce({"f": (function, np.ones(1000, np.float32), ())}, jnp.zeros(()), None) as at_once:
        assert at_once.choose(64) == 8


def test_memory_budget_is_part_of_the_memory():
    assert 2**20 < memory_budget() < 2**45


def test_an_error_of_the_compiler_is_not_taken_for_a_lack_of_memory():
    def broken(state, batch):
        raise RuntimeError("the network itself")

    with (
        AtOnce({"f": (jax.jit(broken), np.ones(3, np.float32), ())}, jnp.zeros(()), None) as at_once,
        pytest.raises(RuntimeError, match="the network itself"),
    ):
        at_once.choose(2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_batch": "fast"}, "must be one of fixed, auto, got 'fast'"),
        ({"micro_batch": "auto", "method": "gns", "batch_size": 16}, "must be fixed for gns"),
        ({"max_micro_batch_size": 256}, "pass --micro_batch=auto"),
    ],
)
def test_refused_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        check(Config(**changes))


@pytest.mark.parametrize("size", [64, 384, 200])
def test_a_bound_that_is_no_power_of_two_times_the_micro_batch(size):
    config = Config(micro_batch="auto", max_micro_batch_size=size)
    with pytest.raises(ValueError, match=f"micro_batch_size=128 times a power of two, got {size}"):
        resolve(config, 60_000)


@pytest.mark.parametrize(("cached", "most"), [(0, 1), (256 * 4 * 5 * MICRO, 4), (256 * 4 * 40 * MICRO, 16)])
def test_a_cpu_takes_what_its_caches_hold(monkeypatch, cached, most):
    monkeypatch.setattr(footprint, "CACHED", cached)  # 256 hidden units are the largest array of an example
    taken = []
    choose = AtOnce.choose
    monkeypatch.setattr(AtOnce, "choose", lambda self, count: taken.append(choose(self, count)) or taken[-1])
    run_with(micro_batch="auto")
    assert max(taken) == most
    taken.clear()
    run_with(micro_batch="auto", max_micro_batch_size=8 * MICRO)  # a flag holds
    assert max(taken) == 8
