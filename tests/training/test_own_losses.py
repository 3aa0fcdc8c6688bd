"""Images with a loss, or inputs, of one's own: what is attacked and predicted, what is refused, and when."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessabs
from hessabs import attacks, batch_size
from hessabs.training import Durability, RunSettings, evaluate, fit, predict, tasks
from hessabs.training.task import attack_loss
from hessabs.training.tasks import Mean
from tests.training.runs import lines
from tests.training.test_tasks import CLASSES, images

pytestmark = pytest.mark.sampled
SHIFT, SCALE = 0.3, 0.05


class Net(nn.Module):
    """Outputs of any shape, of images that it may normalise itself."""

    outputs: tuple[int, ...] = (CLASSES,)
    normalizes: bool = False

    @nn.compact
    def __call__(self, x):
        x = (x - SHIFT) / SCALE if self.normalizes else x
        return nn.DenseGeneral(self.outputs)(nn.tanh(nn.Dense(6)(x.reshape(len(x), -1))))


def outside(batch):
    return (batch["image"] - SHIFT) / SCALE


def train(task, **options):
    return fit(task, optax.adam(1e-2), batch_size.constant(8), epochs=1, **options)


def averaged(values, batch, **metrics):
    """A mean over examples of values of any shape, and of metrics."""
    weight, total = batch["weight"], jnp.sum(batch["weight"])
    over = {name: jnp.sum(weight * x) / total for name, x in {"mean": values, **metrics}.items()}
    return Mean(over.pop("mean"), total, over)


def rows(values):
    return values.reshape(len(values), -1).mean(axis=1)


def smoothed(outputs, batch):
    labels = optax.smooth_labels(jax.nn.one_hot(batch["label"], CLASSES), 0.1)
    right = outputs.argmax(-1) == batch["label"]
    return averaged(optax.softmax_cross_entropy(outputs, labels), batch, accuracy=right)


def likelihood(outputs, batch):
    """Of an age, which is a whole number, too."""
    mean, log_variance = outputs[:, 0], outputs[:, 1]
    return averaged((mean - batch["label"]) ** 2 * jnp.exp(-log_variance) + log_variance, batch)


OTHERS = {
    "autoencoder": ((3, 3, 1), lambda labels: None, lambda o, b: averaged(rows((o - b["image"]) ** 2), b)),
    "segmentation": (
        (3, 3, CLASSES),
        lambda labels: np.tile(labels[:, None, None], (1, 3, 3)),
        lambda o, b: averaged(rows(optax.softmax_cross_entropy_with_integer_labels(o, b["label"])), b),
    ),
    "several labels": (
        (CLASSES,),
        lambda labels: np.eye(CLASSES, dtype=np.float32)[labels],
        lambda o, b: averaged(rows(optax.sigmoid_binary_cross_entropy(o, b["label"])), b),
    ),
    "regression": (
        (1,),
        lambda labels: labels.astype(np.float32),
        lambda o, b: averaged((o[:, 0] - b["label"]) ** 2, b),
    ),
    "age": ((2,), lambda labels: labels + 20, likelihood),
}


def other_data(name, number, seed=0):
    given = images(number, seed)
    label = OTHERS[name][1](given["label"])
    return {"image": given["image"], **({} if label is None else {"label": label})}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_of_no_classes_trains_and_is_not_attacked(name):
    outputs, _, loss = OTHERS[name]
    task = tasks.linen(Net(outputs), (other_data(name, 40), other_data(name, 10, 1)), loss=loss)
    assert not task.attackable
    summary = train(task).summary
    assert np.isfinite(summary["test_loss"])
    assert not {"fgsm_accuracy", "fgsm_loss"} & summary.keys()
    with pytest.raises(ValueError, match=r"predicts no classes|cannot be attacked"):
        predict(task, *task.init(jax.random.key(0)), other_data(name, 3)["image"])


@pytest.mark.slow
def test_a_loss_of_classes_with_an_accuracy_is_attacked():
    task = tasks.linen(Net(), (images(40), images(10, 1)), loss=smoothed)
    assert task.attackable
    assert {"fgsm_accuracy", "fgsm_loss"} <= train(task).summary.keys()

    def without(outputs, batch):
        return smoothed(outputs, batch)._replace(metrics={})

    silent, said = (
        tasks.linen(Net(), (images(40), images(10, 1)), loss=without, **more)
        for more in ({}, {"bounds": (0.0, 1.0)})
    )
    assert (silent.attackable, said.attackable) == (False, True)


@pytest.mark.parametrize("name", ["autoencoder", "segmentation", "several labels"])
def test_one_that_says_it_can_be_attacked_and_cannot_is_refused_before_it_trains(name, tmp_path):
    outputs, _, loss = OTHERS[name]
    data = other_data(name, 40), other_data(name, 10, 1)
    task = tasks.linen(Net(outputs), data, loss=loss, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="is of classes, and can be attacked; make it with logits=None"):
        train(task, workdir=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_inputs_that_are_a_function_of_the_batch_are_those_of_attacks_and_predictions():
    data = images(64), images(40, 1)
    inside = tasks.linen(Net(normalizes=True), data)
    other = tasks.linen(Net(), data, inputs=outside)
    settings = RunSettings(fgsm_epsilon=0.05, pgd_steps=3)
    one, two = (train(task, settings=settings) for task in (inside, other))
    for name in ("test_accuracy", "test_loss", "fgsm_accuracy", "fgsm_loss", "pgd_accuracy", "pgd_loss"):
        np.testing.assert_allclose(one.summary[name], two.summary[name], rtol=1e-4)
    found = [predict(task, run.params, {}, data[1]["image"]) for task, run in ((inside, one), (other, two))]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)
    clean = evaluate(other, two.params, {})
    np.testing.assert_allclose((found[1].argmax(1) == data[1]["label"]).mean(), clean["accuracy"], rtol=1e-6)


@pytest.mark.slow
def test_inputs_that_are_a_function_of_more_of_the_batch_are_not_attacked():
    data = [{**part, "shown": np.ones(len(part["label"]), np.float32)} for part in (images(40), images(10, 1))]
    task = tasks.linen(Net(), tuple(data), inputs=lambda b: b["image"] * b["shown"][:, None, None, None])
    assert not task.attackable
    assert train(task).summary["test_accuracy"] >= 0


@pytest.mark.parametrize("name", ["test", "validation"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda part: {"image": part["image"]}, "KeyError"),
        (lambda part: {**part, "image": part["image"][:, :2]}, r"\[2, 3, 1\]"),
    ],
)
def test_data_for_evaluation_that_do_not_fit_are_refused_before_it_trains(name, change, said):
    parts = {"test": images(10, 1), "validation": images(10, 2)}
    parts[name] = change(parts[name])
    loss = lambda outputs, batch: smoothed(outputs, batch)  # noqa: E731
    with pytest.raises(ValueError, match=rf"The {name} data of the task Net do not fit its loss.*{said}"):
        train(tasks.linen(Net(), (images(40), parts["test"]), loss=loss, validation=parts["validation"]))


@pytest.mark.parametrize("masked", [False, True])
def test_a_loss_that_is_a_sum_is_refused_and_one_of_half_of_the_examples_is_not(masked):
    def total(outputs, batch):
        mean = smoothed(outputs, batch)
        return mean if masked else mean._replace(mean=mean.mean * mean.weight)

    def loss(outputs, batch):
        counts = (batch["shown"] if masked else 1.0) * batch["weight"]
        return total(outputs, {**batch, "weight": counts})

    parts = [
        {**part, "shown": np.arange(len(part["label"])) // 4 % 2.0} for part in (images(40), images(10, 1))
    ]
    task = tasks.linen(Net(), tuple({**p, "shown": p["shown"].astype(np.float32)} for p in parts), loss=loss)
    if masked:
        assert np.isfinite(train(task).summary["test_loss"])
    else:
        with pytest.raises(ValueError, match=r"is a sum over examples, not a mean: .* of 8 of them"):
            train(task)


@pytest.mark.slow
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_may_end_a_run_that_then_goes_on(tmp_path, error):
    task, told = tasks.linen(Net(), (images(40), images(10, 1))), []

    def callback(event, record):
        told.append((event, record.get("samples")))
        if told[-1] == ("epoch", 80) and told.count(("epoch", 80)) == 1:
            raise error("enough")

    def run(**options):
        optimizer, rule = optax.adam(1e-2), batch_size.constant(8)
        return fit(task, optimizer, rule, epochs=4, workdir=tmp_path / "run", callbacks=[callback], **options)

    with pytest.raises(error, match="enough"):
        run(durability=Durability())
    assert len(run(durability=Durability(resume=True)).records) == 4
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4]
    assert ("start", 80) in told  # and not from the beginning again


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"durability": Durability()}, "`durability` needs a `workdir`"),
        ({"callbacks": ["csv"]}, "`callbacks` must be a list of functions .*make_callbacks"),
        ({"epochs": 2.5}, "`epochs` must be a whole number of at least 1, got 2.5"),
        (
            {"optimizer": optax.chain(hessabs.adaptive_batch_size(batch_size.constant(8)), optax.sgd(0.1))},
            r"in `fit`: fit\(task, optimizer, rule\)",
        ),
    ],
)
def test_what_fit_refuses(options, said):
    given = {"optimizer": optax.sgd(0.1), "epochs": 1, **options}
    with pytest.raises(ValueError, match=said):
        fit(
            tasks.linen(Net(), (images(40), images(10, 1))),
            given.pop("optimizer"),
            batch_size.constant(8),
            **given,
        )


def test_a_field_that_a_task_does_not_have():
    with pytest.raises(ValueError, match="A task has no field 'nmae'; its fields are: name, init"):
        tasks.linen(Net(), (images(4), images(4)), nmae="mine")


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers(tmp_path):
    task = tasks.linen(Net(), (images(40), images(10, 1)))
    settings = RunSettings(seed=np.int64(3), fgsm_epsilon=np.float32(0.02))
    result = fit(
        task,
        optax.sgd(0.1),
        batch_size.constant(np.int64(8)),
        epochs=np.int64(1),
        settings=settings,
        workdir=tmp_path,
        record={"lr": np.float32(0.1)},
    )
    assert result.summary["updates"] == 5


@pytest.mark.slow
def test_attacks_of_a_loss_of_classes_raise_its_cross_entropy():
    task = tasks.linen(Net(), (images(40), images(10, 1)), loss=smoothed)
    params, state = task.init(jax.random.key(0))
    batch = task.prepare(images(10, 1))
    moved = attacks.fgsm(0.1)(attack_loss(task, state), params, batch)

    def cross_entropy(image):
        logits = task.logits(params, state, image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    want = batch["image"] + 0.1 * jnp.sign(jax.grad(cross_entropy)(batch["image"]))
    np.testing.assert_allclose(moved["image"], want.clip(0, 1), atol=1e-6)
