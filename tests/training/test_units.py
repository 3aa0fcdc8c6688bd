"""Inputs in other units than [0, 1]: what is attacked is the same network, or it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from hessabs import attacks, batch_size
from hessabs.training import RunSettings, evaluate, fit, tasks
from hessabs.training.objectives import attacked, free, make_inner, mixing
from hessabs.training.task import attack_loss

N, EPSILON = 64, 0.1
UNITS = {"unit": (1.0, 0.0), "bytes": (255.0, 0.0), "standardised": (2.5, -0.8)}


class Net(nn.Module):
    """A network that brings its inputs back to [0, 1]."""

    scale: float
    offset: float

    @nn.compact
    def __call__(self, x):
        x = (x - self.offset) / self.scale
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x.reshape(len(x), -1))))


def images(scale=1.0, offset=0.0):
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (N, 3, 3, 1)).astype(np.float32).round(1)  # many at the bounds
    label = (image.mean(axis=(1, 2, 3)) * 6 - 1.5).clip(0, 2).astype(np.int32)
    return {"image": (scale * image + offset).astype(np.float32), "label": label}


def task_in(unit, **fields):
    scale, offset = UNITS[unit]
    return tasks.linen(
        Net(scale, offset), (images(scale, offset),) * 2, bounds=(offset, scale + offset), **fields
    )


def trained(unit, objective=None, fraction=0.0):
    task, size = task_in(unit), EPSILON * UNITS[unit][0]
    extra = {} if objective is None else {"objective": objective(size)}
    settings = RunSettings(fgsm_epsilon=size, pgd_steps=3)
    rule = batch_size.with_adversarial(batch_size.constant(16), fraction, decrease=1.0)
    return task, size, fit(task, optax.sgd(0.1), rule, epochs=2, settings=settings, **extra)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [pytest.param("bytes", marks=pytest.mark.slow), "standardised"])
def test_the_accuracy_under_attack_is_that_in_other_units(unit):
    _, _, want = trained("unit")
    task, size, got = trained(unit)
    for name in ("test_accuracy", "fgsm_accuracy", "pgd_accuracy"):
        assert got.summary[name] == pytest.approx(want.summary[name], abs=100 / N + 0.01)  # rounding: one image
    assert got.summary["fgsm_accuracy"] < got.summary["test_accuracy"]
    fgsm = attacks.fgsm(size, bounds=task.bounds)
    accuracy = evaluate(task, got.params, got.model_state, attack=fgsm)["accuracy"]
    assert 100 * accuracy == pytest.approx(got.summary["fgsm_accuracy"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "fraction"),
    [
        (lambda size: mixing(make_inner("fgsm", size), 0.5), 0.5),
        pytest.param(lambda size: attacked(make_inner("pgd", size, steps=2)), 0.0, marks=pytest.mark.slow),
        pytest.param(free, 0.0, marks=pytest.mark.slow),
    ],
    ids=["mixing", "attacked", "free"],
)
def test_robust_training_is_that_in_other_units(objective, fraction):
    # Random starts are drawn in the ball, alike in all units; rounding goes through the sign of gradients.
    _, _, want = trained("unit", objective, fraction)
    _, _, got = trained("standardised", objective, fraction)
    assert any(record["adversarial_fraction"] for record in got.records)
    for record, other in zip(want.records, got.records, strict=True):
        assert record["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)


def test_an_inner_attack_moves_what_lies_beyond_one():
    task = task_in("standardised")
    params, model_state = task.init(jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, images(*UNITS["standardised"]))
    attack = make_inner("fgsm", 0.25).on(task)
    moved = jax.jit(attack)(attack_loss(task, model_state), params, batch)["image"] - batch["image"]
    inside = (batch["image"] > -0.5) & (batch["image"] < 1.4)
    np.testing.assert_allclose(np.abs(moved)[inside], 0.25, rtol=1e-5)


@pytest.mark.slow
def test_inputs_under_another_key_are_attacked_at_the_end():
    data = ({"x": images()["image"], "label": images()["label"]},) * 2
    task = tasks.linen(
        Net(1.0, 0.0), data, inputs="x", loss=tasks.losses.classification, bounds=(0.0, 1.0), name="mine"
    )
    summary = fit(task, optax.sgd(0.1), batch_size.constant(16), epochs=1).summary
    assert summary["fgsm_accuracy"] <= summary["test_accuracy"]


@pytest.mark.slow
def test_inputs_outside_of_the_bounds_are_refused_before_training():
    task = tasks.linen(Net(*UNITS["standardised"]), (images(*UNITS["standardised"]),) * 2)
    message = r"inputs of the task Net lie in \[-0\.8, 1\.7\], outside of its `bounds` \(0\.0, 1\.0\)"
    with pytest.raises(ValueError, match=message):
        fit(task, optax.sgd(0.1), batch_size.constant(16), epochs=1)
    params, model_state = task.init(jax.random.key(0))
    for key in (None, jax.random.key(0)):
        attack = attacks.pgd(0.1, steps=1, bounds=(-0.8, 1.7), random_start=key is not None)
        with pytest.raises(ValueError, match=message):
            evaluate(task, params, model_state, attack=attack, key=key)
    assert evaluate(task, params, model_state)["loss"] > 0  # nothing is attacked


def test_an_attack_with_other_bounds_is_refused_where_it_is_compiled():
    task = task_in("standardised")
    params, model_state = task.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"lie in \[-0\.8, 1\.7\], outside `bounds` \(0\.0, 1\.0\)"):
        evaluate(task, params, model_state, attack=attacks.fgsm(0.1))


@pytest.mark.slow
def test_free_training_leaves_a_clean_input_where_it_is():
    task = task_in("standardised")._replace(bounds=(0.0, 1.0))
    params, model_state = task.init(jax.random.key(0))
    batch = {**jax.tree.map(jnp.asarray, images(*UNITS["standardised"])), "weight": jnp.ones(N)}
    objective = free(0.0)
    got = objective.gradient(task, params, model_state, batch, jax.random.key(0), objective.init(task, batch))
    want = jax.grad(lambda p: task.loss(p, model_state, batch, jax.random.key(0), True).mean)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got.gradient, want)
