"""Means over a split against counting by hand: images, tokens and plain functions, clean and attacked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from hessabs import attacks, cli
from hessabs.training import tasks
from hessabs.training.evaluation import evaluate, make_evaluation
from tests.training.look import kinds

pytestmark = pytest.mark.sampled


def by_hand(run, source):
    """Loss and metrics of one example at a time, in float64, by what it weighs."""
    task, sums, weights = run.task, {}, 0.0

    @jax.jit
    def one(batch):
        out = task.loss(run.params, run.model_state, batch, jax.random.key(0), False)
        return out.weight, {"loss": out.mean, **out.metrics}

    batch = kinds.whole(source, task)
    for i in range(len(source)):
        weight, means = one(jax.tree.map(lambda x, i=i: x[i : i + 1], batch))
        weights += float(weight)
        for name, mean in means.items():
            sums[name] = sums.get(name, 0.0) + float(weight) * float(mean)
    return {name: value / weights for name, value in sums.items()}


@pytest.mark.parametrize("kind", [kinds.images, kinds.tokens, kinds.plain], ids=lambda f: f.__name__)
def test_uneven_batches_padding_and_masks_are_exact(kind):
    run = kind()
    task, params, model_state, _ = run
    want = by_hand(run, task.test)
    got = evaluate(task, params, model_state, batch_size=9)
    metric = {kinds.images: "accuracy", kinds.tokens: "token_accuracy", kinds.plain: "absolute"}[kind]
    assert set(got) == set(want) == {"loss", metric}
    assert got == pytest.approx(want, rel=1e-5)


def test_accuracy_is_a_fraction_counted_by_hand():
    task, params, model_state, _ = kinds.images()
    batch = task.test.take(np.arange(130))
    logits = kinds.Small().apply({"params": params}, batch["image"].astype(np.float32) / 255)
    want = np.mean(np.argmax(logits, axis=-1) == batch["label"])
    assert 0.5 < want < 1
    assert evaluate(task, params, model_state, batch_size=40)["accuracy"] == pytest.approx(want)


def test_an_evaluation_is_traced_once_for_all_params_and_split_over_devices():
    task, params, model_state, _ = kinds.plain()
    traces = []

    def loss(*args):
        traces.append(1)
        return task.loss(*args)

    counted = task._replace(loss=loss)
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    evaluation = make_evaluation(counted, task.test, mesh=mesh, batch_size=8)
    first = evaluation(params, model_state)
    other = evaluation(jax.tree.map(lambda x: x + 1, params), model_state)
    assert len(traces) == 1
    assert first == pytest.approx(evaluate(task, params, model_state), rel=1e-5)
    assert first["loss"] != other["loss"]


SCALE = 50.0  # label 0 is ahead by 2 * SCALE * (sum of the pixels - 2), 20 to 60
SURE = {
    "Dense_0": {
        "kernel": SCALE * jnp.tile(jnp.array([[3.0, 1.0]]), (4, 1)),
        "bias": jnp.array([0.0, 4 * SCALE]),
    }
}
SUMS = np.linspace(2.21, 2.59, 20)


def linear():
    from flax import linen as nn

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x.reshape(len(x), -1))

    image = np.float32(np.broadcast_to(SUMS[:, None, None, None] / 4, (20, 2, 2, 1)))
    examples = {"image": image, "label": np.zeros(20, np.int32)}
    return tasks.linen(Linear(), (examples, examples))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "key"), [(attacks.fgsm(0.1), None), (attacks.pgd(0.1, steps=10), jax.random.key(0))]
)
def test_an_attack_finds_the_gradient_of_a_network_that_is_sure(attack, key):
    # In closed form each pixel goes down by epsilon; what log_softmax keeps in float32 points up.
    task = linear()
    assert evaluate(task, SURE, {})["accuracy"] == 1
    got = evaluate(task, SURE, {}, attack=attack, key=key, batch_size=8)
    assert got["accuracy"] == pytest.approx(np.mean(SUMS - 0.4 > 2))


def test_logits_of_nan_are_no_class():
    assert evaluate(linear(), jax.tree.map(lambda x: x * jnp.nan, SURE), {})["accuracy"] == 0


def test_what_cannot_be_evaluated_is_said():
    task, params, model_state, _ = kinds.tokens()
    with pytest.raises(ValueError, match=r"`split` must be one of test, train, .* got 'validation'"):
        evaluate(task, params, model_state, split="validation")
    with pytest.raises(ValueError, match="inputs are not continuous"):
        evaluate(task, params, model_state, attack=attacks.fgsm(0.1))
    masked = task._replace(test=type(task.test)({**task.test.take(np.arange(3)), "mask": np.zeros((3, 7))}))
    with pytest.raises(ValueError, match="weighs nothing in this split"):
        evaluate(masked, params, model_state)


def test_the_command(monkeypatch, capsys):
    run = kinds.images()
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: run)
    assert cli.main(["evaluate", "--workdir=w"]) == 0
    accuracy = evaluate(*run[:3])["accuracy"]
    assert f"accuracy             {100 * accuracy:.2f}%" in capsys.readouterr().out
    assert cli.main(["evaluate", "--workdir=w", "--split=dev"]) == 2
    assert "`split` must be one of test, train" in capsys.readouterr().err
