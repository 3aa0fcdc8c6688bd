"""Batch norm's running averages belong to the params that are evaluated, also where these are an average."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import batch_size, training
from hessabs.data import as_source
from hessabs.training import LossOutput, RunSettings, Task, fit, tasks
from hessabs.training.average_state import make_refresh
from hessabs.training.trained import load_trained

EXAMPLES, FEATURES, MICRO = 96, 5, 16


class Net(nn.Module):
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=self.momentum)(x)
        return nn.Dense(3)(nn.relu(x))


def examples(seed=0, number=EXAMPLES):
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=number)
    centres = 2 * np.random.default_rng(9).normal(size=(3, FEATURES))
    return {"x": (centres[label] + rng.normal(size=(number, FEATURES))).astype(np.float32), "label": label}


def make_task(momentum=0.9):
    return tasks.linen(Net(momentum), (examples(), examples(1)), inputs="x", loss=tasks.classification)


def statistics(params, x):
    """Mean and variance before the norm, by NumPy."""
    dense = jax.tree.map(np.asarray, params["Dense_0"])
    before = x @ dense["kernel"] + dense["bias"]
    return before.mean(0), before.var(0)


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_a_hundredth_of_the_state_before_is_left(momentum):
    # One micro-batch is the whole set, so all have its statistics.
    task = make_task(momentum)
    params, state = task.init(jax.random.key(0))
    before = jax.tree.map(lambda x: x + 100.0, state)
    after = make_refresh(task, EXAMPLES)(params, before)["batch_stats"]["BatchNorm_0"]
    for name, want in zip(("mean", "var"), statistics(params, examples()["x"]), strict=True):
        start = np.asarray(before["batch_stats"]["BatchNorm_0"][name])
        left = (np.asarray(after[name]) - want) / (start - want)
        passes = np.ceil(np.log(0.01) / np.log(momentum))
        np.testing.assert_allclose(left, momentum**passes, rtol=5e-3)


def test_a_state_that_is_no_average_is_left_alone_or_passed_to_the_limit():
    def loss(params, model_state, batch, key, train):
        del key
        mean = jnp.sum(batch["weight"] * (batch["x"] @ params) ** 2) / jnp.sum(batch["weight"])
        state = {name: value + train for name, value in model_state.items()}
        return training.LossOutput(mean, jnp.sum(batch["weight"]), state)

    for start, want in ((0, 0), (0.0, 500.0)):
        state = {"count": jnp.asarray(start)}
        task = tasks.plain(
            lambda key, state=state: (jnp.ones(FEATURES), state),
            loss,
            {"x": examples()["x"]},
            {"x": examples(1)["x"]},
        )
        assert make_refresh(task, MICRO)(jnp.ones(FEATURES), state) == {"count": want}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_an_average_is_evaluated_and_saved_with_statistics_of_its_own(tmp_path, devices):
    task = make_task()
    settings = RunSettings(ema=4 * EXAMPLES, devices=devices)
    sgd = optax.sgd(0.3, momentum=0.9)
    result = fit(task, sgd, batch_size.constant(MICRO), epochs=6, settings=settings, workdir=tmp_path)
    norm = result.average_state["batch_stats"]["BatchNorm_0"]
    mean, var = statistics(result.average, examples()["x"])
    np.testing.assert_allclose(norm["mean"], mean, atol=0.3 * np.sqrt(var).max())  # about twenty micro-batches
    np.testing.assert_allclose(norm["var"], var, rtol=0.3)
    last = result.model_state["batch_stats"]["BatchNorm_0"]
    assert np.abs(np.asarray(last["var"]) / var - 1).max() > 1  # of other params
    seen = training.evaluate(task, result.average, result.average_state)
    assert result.records[-1]["ema_test_accuracy"] == pytest.approx(100 * seen["accuracy"])
    assert result.records[-1]["ema_test_loss"] == pytest.approx(seen["loss"], rel=1e-5)
    loaded = load_trained(tmp_path, task, average=True)
    for got, want in ((loaded.params, result.average), (loaded.model_state, result.average_state)):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    again = fit(
        task,
        sgd,
        batch_size.constant(MICRO),
        epochs=6,
        settings=settings,
        workdir=tmp_path,
        durability=training.Durability(resume=True),
    )
    jax.tree.map(np.testing.assert_array_equal, again.average_state, result.average_state)


@pytest.mark.slow
def test_schedule_free_is_evaluated_with_statistics_of_its_average():
    settings = training.OptimizerSettings("schedule_free", lr=0.1, schedule_free_base="sgd")
    optimizer = training.make_optimizer(settings, batch_size=MICRO)
    result = fit(make_task(), optimizer, batch_size.constant(MICRO), epochs=4)
    norm = result.model_state["batch_stats"]["BatchNorm_0"]
    mean, var = statistics(result.params, examples()["x"])
    np.testing.assert_allclose(norm["mean"], mean, atol=0.3 * np.sqrt(var).max())
    np.testing.assert_allclose(norm["var"], var, rtol=0.3)


def test_statistics_beyond_a_float32_end_the_passes():
    def loss(params, model_state, batch, key, train):
        moved = {"mean": 1e30 * model_state["mean"] + batch["x"].mean()}
        return LossOutput(jnp.mean(batch["x"]) * params["w"], jnp.sum(batch["weight"]), moved)

    rows = {"x": np.ones((8, 1), np.float32)}
    task = Task(
        "mine", lambda key: ({"w": jnp.ones(())}, {"mean": jnp.ones(1)}), loss, *map(as_source, (rows, rows))
    )
    after = make_refresh(task, 4)({"w": jnp.ones(())}, {"mean": jnp.ones(1)})
    assert np.isinf(after["mean"]).all()
