"""Tasks of one's own: trained, broken off, resumed, measured, attacked, predicted and evaluated."""

from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hessabs import batch_size, data
from hessabs.training import Durability, LossOutput, RunSettings, fit, load_trained, make_schedule, tasks
from hessabs.training.evaluation import evaluate
from hessabs.training.look.attack import Options as AttackOptions
from hessabs.training.look.attack import attack
from hessabs.training.look.predict import predict
from hessabs.training.look.spectrum import Options as SpectrumOptions
from hessabs.training.look.spectrum import spectrum
from hessabs.training.tasks import named
from tests.training.runs import bits, lines

pytestmark = pytest.mark.sampled
TRAIN, TEST, CLASSES, MICRO = 72, 20, 3, 8
VOCABULARY = 5


class Broken(BaseException):
    """What ends a run as a kill does: nothing is saved on the way out."""


def images(number, seed=0):
    """Images of three classes, told apart by which third of the pixels is bright."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, number).astype(np.int32)
    image = rng.integers(0, 100, (number, 3, 3, 1))
    image[np.arange(number), label] += 120
    return {"image": image.astype(np.uint8), "label": label}


def tokens(number, seed=0):
    """Sequences in which the next token is one more, masked unevenly: some examples wholly."""
    rng = np.random.default_rng(seed)
    walk = (rng.integers(0, VOCABULARY, (number, 1)) + np.arange(7)) % VOCABULARY
    mask = rng.random((number, 6)) < rng.random((number, 1))
    return {
        "tokens": walk.astype(np.int32),
        "mask": (mask & (rng.random((number, 1)) < 0.8)).astype(np.float32),
    }


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES)(nn.tanh(x))


class Bigrams(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Embed(VOCABULARY, VOCABULARY)(x)


class NnxNet(nnx.Module):
    def __init__(self, *, rngs):
        self.first, self.last = nnx.Linear(9, 6, rngs=rngs), nnx.Linear(6, CLASSES, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.tanh(self.first(x.reshape(len(x), -1)))))


class EqxNet(eqx.Module):
    first: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(9, 6, key=keys[0]), eqx.nn.Linear(6, CLASSES, key=keys[1])

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x.reshape(-1))))


def plain_loss(params, model_state, batch, key, train):
    errors = batch["x"] @ params["w"] + params["b"] - batch["y"]
    total = jnp.sum(batch["weight"])
    mean = jnp.sum(batch["weight"] * errors**2) / jnp.maximum(total, 1e-9)
    return LossOutput(mean, total, model_state, {"rmse": jnp.sqrt(mean)})


def plain_data(number, seed=0):
    x = np.random.default_rng(seed).normal(size=(number, 4)).astype(np.float32)
    return {"x": x, "y": x @ np.array([1, -2, 3, 0.5], np.float32)}


def of_classes():
    return data.Dataset("stripes", images(TRAIN), images(TEST, 1), CLASSES, ("top", "middle", "bottom"))


KINDS = {
    # task, optimiser of the user's own, whether its inputs are continuous
    "linen": (lambda: tasks.linen(LinenNet(), of_classes()), optax.sgd(0.1, momentum=0.9), True),
    "nnx": (lambda: tasks.nnx(lambda rngs: NnxNet(rngs=rngs), of_classes()), optax.adam(0.02), True),
    "equinox": (lambda: tasks.equinox(EqxNet, of_classes()), optax.adamw(0.02), True),
    "plain": (
        lambda: tasks.plain(
            {"w": jnp.zeros(4), "b": jnp.zeros(())}, plain_loss, plain_data(TRAIN), plain_data(9)
        ),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        False,
    ),
    "tokens": (
        lambda: tasks.linen(Bigrams(), (tokens(TRAIN), tokens(TEST, 1))),
        optax.sgd(optax.linear_schedule(2.0, 1.0, 20), nesterov=True, momentum=0.5),
        False,
    ),
}


def growing(number=TRAIN):
    """16 examples, and 32 after an epoch."""
    return batch_size.fixed_growth(2 * MICRO, 4 * MICRO, grow_at=[number])


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("plain", 4),  # the command line trains a network in the fast tests
        *[slow("linen", 1), slow("linen", 4), slow("nnx", 1), slow("nnx", 4), slow("equinox", 1)],
        *[slow("equinox", 4), slow("plain", 1), slow("tokens", 1), slow("tokens", 4)],
    ],
)
def test_a_task_of_ones_own_does_everything(kind, devices, tmp_path):
    make, optimizer, continuous = KINDS[kind]
    task, options = make(), {"epochs": 2, "micro_batch_size": MICRO, "settings": RunSettings(devices=devices)}
    saves = Durability(checkpoint_every="32samples")
    whole = fit(task, optimizer, growing(), workdir=tmp_path / "whole", durability=saves, **options)
    assert whole.records[-1]["train_loss"] < whole.records[0]["train_loss"]

    def breaks(event, record):
        if event == "epoch" and record["epoch"] == 2:
            raise Broken

    workdir = tmp_path / "broken"
    with pytest.raises(Broken):
        fit(make(), optimizer, growing(), workdir=workdir, durability=saves, callbacks=[breaks], **options)
    again = saves._replace(resume=True)
    resumed = fit(make(), optimizer, growing(), workdir=workdir, durability=again, **options)
    assert bits((resumed.params, resumed.model_state)) == bits((whole.params, whole.model_state))
    assert lines(workdir) == lines(tmp_path / "whole")

    trained = load_trained(workdir, make())
    assert bits((trained.params, trained.model_state)) == bits((whole.params, whole.model_state))
    network = trained[:3]
    found = evaluate(*network)
    assert found["loss"] == pytest.approx(whole.summary["test_loss"], rel=1e-5)
    rows = spectrum(*network, workdir, SpectrumOptions(top=1, batch_size=24))["eigenvalues"]
    assert [row["matrix"] for row in rows] == ["training", "test"]
    assert all(row["converged"] for row in rows)
    if not continuous:
        with pytest.raises(ValueError, match="cannot be attacked: its inputs are not continuous"):
            attack(*network, workdir, AttackOptions(("fgsm",), (0.1,)))
        with pytest.raises(ValueError, match="predicts no classes"):
            predict(*network, np.zeros((2, 4)))
        return
    assert found["accuracy"] > 0.8
    rows = attack(*network, workdir, AttackOptions(("fgsm",), (0.3,)))["rows"]
    accuracy = {row["attack"]: row["accuracy"] for row in rows}
    assert accuracy["clean"] == pytest.approx(found["accuracy"])
    assert accuracy["fgsm"] < accuracy["clean"]
    probabilities = predict(*network, task.test["image"])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == task.test["label"]).mean() == pytest.approx(found["accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [slow(1), 4])
def test_an_update_is_that_of_all_unmasked_tokens(devices):
    """Micro-batches and devices have different numbers of them; in float64 by hand each token counts once."""
    examples = tokens(4 * MICRO, seed=3)
    counts = examples["mask"].reshape(4, -1).sum(1)
    assert len(set(counts.tolist())) == 4
    task = tasks.linen(Bigrams(), (examples, examples))
    options = {"epochs": 1, "micro_batch_size": MICRO, "settings": RunSettings(devices=devices)}
    result = fit(task, optax.sgd(1.0), batch_size.constant(4 * MICRO), **options)
    assert result.summary["updates"] == 1

    [before] = (np.asarray(x, np.float64) for x in jax.tree.leaves(task.init(jax.random.key(0))[0]))
    [after] = (np.asarray(x, np.float64) for x in jax.tree.leaves(result.params))
    inputs, targets = examples["tokens"][:, :-1], examples["tokens"][:, 1:]
    logits = before[inputs]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    share = examples["mask"].astype(np.float64) / examples["mask"].sum()
    gradient = np.zeros_like(before)
    np.add.at(gradient, inputs, (p - np.eye(VOCABULARY)[targets]) * share[..., None])
    np.testing.assert_allclose(before - after, gradient, rtol=1e-5, atol=1e-7)
    loss = -(share * np.log(np.take_along_axis(p, targets[..., None], -1)[..., 0])).sum()
    assert result.records[0]["train_loss"] == pytest.approx(loss, rel=1e-5)


def updates_by_hand(epochs):
    """(images, labels, factor on the rate) of each update of ``growing``, in the order of seed 0."""
    examples, order = (
        images(TRAIN),
        np.concatenate([data.epoch_order(0, epoch, TRAIN) for epoch in range(epochs)]),
    )
    start, size = 0, 2 * MICRO
    while start + size <= len(order):
        here = order[start : start + size]
        yield examples["image"][here] / np.float32(255), examples["label"][here], size / (2 * MICRO)
        start += size
        size = 2 * MICRO if start < TRAIN else 4 * MICRO


def cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


@pytest.mark.slow
def test_fit_of_an_nnx_network_is_a_loop_by_hand():
    """With a schedule with warm-up, which goes by examples."""

    class Net(nnx.Module):
        def __init__(self, *, rngs):
            self.first, self.last = nnx.Linear(9, 6, rngs=rngs), nnx.Linear(6, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.tanh(self.first(x.reshape(len(x), -1))))

    total = 3 * TRAIN
    task = tasks.nnx(lambda rngs: Net(rngs=rngs), of_classes())
    result = fit(
        task,
        optax.adam(0.05),
        growing(),
        epochs=3,
        micro_batch_size=MICRO,
        schedule=make_schedule("cosine", total=total, warmup=40, end=0.1),
    )

    model = Net(rngs=nnx.Rngs(jax.random.key(0)))
    graph, params = nnx.split(model)
    optimizer = optax.adam(0.05)
    opt_state, samples = optimizer.init(params), 0
    step = jax.jit(jax.grad(lambda params, x, y: cross_entropy(nnx.merge(graph, params)(x), y)))
    for image, label, factor in updates_by_hand(3):
        updates, opt_state = optimizer.update(step(params, image, label), opt_state, params)
        part = (samples - 40) / (total - 40)
        fall = 0.1 + 0.9 * (1 + np.cos(np.pi * part)) / 2 if samples > 40 else 1.0
        factor *= min((samples + 1) / 40, 1.0) * fall
        params = optax.apply_updates(params, jax.tree.map(lambda u, factor=factor: factor * u, updates))
        samples += len(label)
    assert result.summary["samples"] - samples < 4 * MICRO
    want = nnx.to_pure_dict(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), result.params, want)


@pytest.mark.slow
def test_fit_of_an_equinox_network_is_a_loop_by_hand(tmp_path):
    """With a running average of the params by examples, which is evaluated and saved."""
    task, optimizer = tasks.equinox(EqxNet, of_classes()), optax.adamw(0.02)
    result = fit(
        task,
        optimizer,
        growing(),
        epochs=3,
        micro_batch_size=MICRO,
        settings=RunSettings(ema=50),
        workdir=tmp_path / "run",
    )

    model = EqxNet(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    average, opt_state = jax.tree.map(np.asarray, params), optimizer.init(params)
    gradient = jax.grad(lambda params, x, y: cross_entropy(jax.vmap(eqx.combine(params, static))(x), y))

    @jax.jit
    def step(params, opt_state, image, label, factor):
        updates, opt_state = optimizer.update(gradient(params, image, label), opt_state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: factor * u, updates)), opt_state

    for image, label, factor in updates_by_hand(3):
        params, opt_state = step(params, opt_state, image, label, factor)
        kept = 0.5 ** (len(label) / 50)
        average = jax.tree.map(lambda a, p, kept=kept: kept * a + (1 - kept) * np.asarray(p), average, params)
    for got, want in ((result.params, params), (result.average, average)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
    test = images(TEST, 1)
    logits = jax.vmap(eqx.combine(average, static))(test["image"] / np.float32(255))
    assert result.records[-1]["ema_test_loss"] == pytest.approx(
        float(cross_entropy(logits, test["label"])), rel=1e-3
    )
    averaged = load_trained(tmp_path / "run", task, average=True)
    assert bits(averaged.params) == bits(result.average) != bits(result.params)


def test_callbacks_are_told_of_every_epoch_and_every_decision():
    told = []
    task = tasks.plain({"w": jnp.zeros(4), "b": jnp.zeros(())}, plain_loss, plain_data(TRAIN), plain_data(9))
    rule = batch_size.fixed_growth(MICRO, 4 * MICRO, grow_at=[TRAIN // 2, TRAIN])
    result = fit(task, optax.sgd(0.1), rule, epochs=3, callbacks=[lambda *event: told.append(event)])
    assert [event for event, _ in told] == ["start", "decision", "epoch", "decision", "epoch", "epoch", "end"]
    by_event = {name: [record for event, record in told if event == name] for name, _ in told}
    assert by_event["epoch"] == result.records
    assert [record["batch_size"] for record in by_event["decision"]] == [2 * MICRO, 4 * MICRO]
    # The first end of an update at or after the examples of the rule.
    assert [record["samples"] for record in by_event["decision"]] == [40, 72]
    assert [record["lr"] for record in by_event["decision"]] == [2.0, 4.0]
    assert by_event["end"] == [result.summary]
    assert by_event["start"][0]["samples"] == 0


def of_ones(labels, **more):
    number = len(labels)
    return {"image": np.ones((number, 3, 3, 1), np.uint8), "label": np.asarray(labels, np.int32), **more}


def mean_loss(outputs, batch):
    return tasks.Mean(jnp.mean(jnp.square(outputs)), jnp.sum(batch["weight"]))


def constant_weight(outputs, batch):
    values = jnp.sum(jnp.square(outputs), axis=1)
    return tasks.Mean(jnp.sum(values * batch["weight"]) / 8, jnp.float32(8))


@pytest.mark.parametrize(
    ("train", "loss", "said"),
    [
        (of_ones([0, 1, 12]), None, r"network has 3 outputs, so labels lie in 0\.\.2, got 12"),
        (of_ones([0, 1, -1]), None, r"labels lie in 0\.\.2, got -1"),
        (
            of_ones(np.zeros((4, 2))),
            None,
            r"logits of shape \(1, 3\) need labels of shape \(1,\), got \(1, 2\)",
        ),
        (
            of_ones([0, 1]),
            lambda outputs, batch: jnp.mean(outputs),
            r"must return Mean\(mean, weight, metrics\)",
        ),
        (
            {"image": np.ones((4, 12), np.float32), "label": np.zeros(4, int)},
            None,
            "does not take the inputs of",
        ),
        ({"x": np.ones((4, 2))}, None, r"keys \['x'\] need `inputs` .* and `loss`"),
        ({"tokens": np.full((4, 3), 7)}, None, "does not take the inputs of"),
    ],
)
def test_data_that_do_not_fit_a_network_are_refused_when_the_task_is_made(train, loss, said):
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            if x.shape[1:] != (3, 3, 1):
                raise TypeError("images of 3x3 are wanted")
            return nn.Dense(CLASSES)(x.reshape(len(x), -1))

    with pytest.raises(ValueError, match=said):
        tasks.linen(Fixed(), (train, train), loss=loss)


def test_a_data_set_with_labels_beyond_its_classes_or_a_network_with_fewer():
    with pytest.raises(ValueError, match=r"Labels of mine must lie in 0\.\.2, got 0\.\.3"):
        tasks.linen(LinenNet(), data.Dataset("mine", of_ones([0, 3]), of_ones([0]), CLASSES))
    with pytest.raises(ValueError, match="too few outputs: its data has 4 classes"):
        tasks.linen(LinenNet(), data.Dataset("mine", of_ones([0, 3]), of_ones([0]), 4))
    with pytest.raises(ValueError, match=r"labels lie in 0\.\.4, got 5"):
        tasks.linen(Bigrams(), ({"tokens": np.array([[0, 5]])},) * 2)

    class Lazy:
        def __len__(self):
            return 20

        def __getitem__(self, i):
            return {"image": np.zeros((8, 8, 1), np.uint8), "label": np.int32(-1 if i == 7 else 0)}

    task = tasks.linen(LinenNet(), (Lazy(), Lazy()))
    with pytest.raises(ValueError, match=r"labels lie in 0\.\.2, got -1"):  # where it is read
        task.train.take(np.arange(20))
    masked = {"tokens": np.array([[0, 5]]), "mask": np.zeros((1, 1), np.float32)}
    tasks.linen(Bigrams(), (masked, masked))  # what does not count may be anything
    logits, batch = jnp.arange(10.0).reshape(1, 2, 5), {"weight": jnp.ones(1), "mask": jnp.array([[1, 0]])}
    got, want = (
        tasks.next_token(logits, {**batch, "tokens": jnp.array([[0, 3, label]])}) for label in (-100, 1)
    )
    assert float(got.mean) == float(want.mean) > 0


def test_making_a_task_reads_no_file_of_tokens(monkeypatch):
    read = []
    source = data.token_source(np.arange(1000) % CLASSES, 3)
    take = type(source).take
    monkeypatch.setattr(
        type(source), "take", lambda self, places: read.append(len(places)) or take(self, places)
    )
    task = tasks.linen(Bigrams(), (source, source))
    assert sum(read) < 10 < len(task.train)
    assert data.fingerprint(task.train) == data.fingerprint(source)


@pytest.mark.parametrize("loss", [mean_loss, constant_weight])
def test_a_loss_that_does_not_heed_the_weight_of_examples(loss):
    task = tasks.nnx(lambda rngs: NnxNet(rngs=rngs), (images(32), images(8)), loss=loss)
    with pytest.raises(ValueError, match=r"does not heed batch\['weight'\], "):
        fit(task, optax.sgd(0.1), batch_size.constant(8), epochs=1)


def test_an_optimiser_whose_state_changes_its_structure():
    def update(updates, state, params=None):
        return updates, {**state, "more": jnp.zeros(())}

    optimizer = optax.GradientTransformation(lambda params: {"count": jnp.zeros(())}, update)
    task = tasks.plain({"w": jnp.zeros(4), "b": jnp.zeros(())}, plain_loss, plain_data(16), plain_data(9))
    with pytest.raises(ValueError, match="state of the optimiser after an update` must have the structure of"):
        fit(task, optimizer, batch_size.constant(8), epochs=1)
    with pytest.raises(ValueError, match="`optimizer` must be an optax transformation or what make_optimizer"):
        fit(task, 0.1, batch_size.constant(8), epochs=1)


class Lazy:
    """Examples that are read one by one, the last of which has a label that there is not."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"image": np.zeros((8, 8, 1), np.uint8), "label": np.int32(10 if index == 19 else 0)}


def test_labels_that_are_held_out_are_checked_as_they_are_read(monkeypatch):
    number = 19  # all but one, so that the last is among them
    held = data.hold_out(Lazy(), number)[1]
    assert held.take(np.arange(number))["label"].max() == 10
    monkeypatch.setattr(named, "load", lambda *_, **__: data.Dataset("mine", Lazy(), Lazy(), 10))
    task = named.make_named(named.TaskSettings(validation_examples=number))
    with pytest.raises(ValueError, match=r"must lie in 0\.\.9, got .* has 10"):
        task.validation.take(np.arange(number))


class BothModes(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, deterministic=True):
        x = nn.Dropout(0.5, deterministic=deterministic)(x.reshape(len(x), -1))
        return nn.Dense(CLASSES)(x)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.dropout = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.dropout(self.dense(x))


class Stacked(nnx.Module):
    """Layers with dropout, made by ``nnx.vmap`` and run by ``nnx.scan``."""

    def __init__(self, rngs):
        make = nnx.split_rngs(splits=3)(nnx.vmap(Layer, in_axes=(0,), out_axes=0))
        self.first, self.layers, self.last = (
            nnx.Linear(9, 6, rngs=rngs),
            make(rngs),
            nnx.Linear(6, CLASSES, rngs=rngs),
        )

    def __call__(self, x):
        run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.last(run(self.first(x.reshape(len(x), -1)), self.layers))


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_every_mode_and_every_stream_of_a_module(kind):
    task = tasks.linen(BothModes(), of_classes())
    if kind == "nnx":
        task = tasks.nnx(lambda rngs: Stacked(rngs), of_classes())
    params, state = task.init(jax.random.key(0))
    batch = task.prepare({**task.train.take(np.arange(8)), "weight": np.ones(8, np.float32)})
    means = [
        [float(task.loss(params, state, batch, jax.random.key(seed), train).mean) for seed in (0, 1)]
        for train in (True, False)
    ]
    assert means[0][0] != means[0][1]
    assert means[1][0] == means[1][1]


class Line(NamedTuple):
    w: jax.Array
    b: jax.Array


@pytest.mark.slow
def test_params_that_are_a_pair_and_a_validation_set_that_is_a_dict():
    def loss(params, model_state, batch, key, train):
        return plain_loss({"w": params[0], "b": params[1]}, model_state, batch, key, train)

    for params in (Line(jnp.zeros(4), jnp.zeros(())), (jnp.zeros(4), jnp.zeros(()))):
        task = tasks.plain(params, loss, plain_data(TRAIN), plain_data(9), validation=plain_data(5))
        result = fit(task, optax.sgd(0.1), batch_size.constant(MICRO), epochs=1)
        assert jax.tree.structure(result.params) == jax.tree.structure(params)
        assert "validation_loss" in result.summary


@pytest.mark.slow
def test_an_average_of_bfloat16_is_kept_in_float32():
    averages = []
    for dtype in (jnp.float32, jnp.bfloat16):
        params = {"w": jnp.zeros(4, dtype), "b": jnp.zeros((), dtype)}
        task = tasks.plain(params, plain_loss, plain_data(64), plain_data(9))
        settings = RunSettings(ema=5_000, hessian_batch_size=16)
        result = fit(task, optax.sgd(0.02), batch_size.constant(MICRO), epochs=40, settings=settings)
        assert result.average["w"].dtype == dtype
        averages.append(np.asarray(result.average["w"], np.float32))
    np.testing.assert_allclose(averages[1], averages[0], rtol=0.03)
