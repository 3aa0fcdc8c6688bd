"""A whole run, held against a simulation that knows the rule and nothing of the code."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs.batch_size import Observation, hessian_adaptive
from hessabs.curvature import PowerIterationResult
from hessabs.training import fit, loop, loop_state
from hessabs.training.assemble import assemble, read_rule
from hessabs.training.clock import Clock
from hessabs.training.evaluation import evaluate
from hessabs.training.files import read_lines
from hessabs.training.loop import train
from hessabs.training.loop_state import Snapshot, arrays_of, record_of, restore
from hessabs.transforms import scale_by_batch_size
from tests.training.runs import MICRO, SETTINGS, N, digits_task, make_run, without_seconds

RECORD_FIELDS = {
    "epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction", "train_loss", "test_loss",
    "test_accuracy", "eigenvalue", "residual", "seconds_step", "seconds_hessian", "seconds_data",
}  # fmt: skip
SUMMARY_FIELDS = {
    "method", "dataset", "model", "seed", "epochs", "updates", "test_accuracy", "fgsm_accuracy",
    "final_batch_size", "eigenvalue", "compilations", "seconds", "seconds_hessian", "versions",
    "batch_size", "lr", "patience", "epsilon", "lr_decay_epochs", "micro_batch_size",
}  # fmt: skip
RUN = {
    "epochs": 6,
    "lr_decay_epochs": (3, 5),
    "max_batch_size": 16 * MICRO,
    "hessian_batch_size": 64,
}

pytestmark = pytest.mark.sampled


class Spy:
    """Functions of an update that note their calls, and may break the params in one."""

    def __init__(self, functions, break_after=None):
        self.updates, self.fractions, self.break_after = [], [], break_after
        self.functions = functions
        names = functions.compilations()
        self.wrapped = functions._replace(
            **{name: _Counted(self, name, getattr(functions, name)) for name in names}
        )


class _Counted:
    def __init__(self, spy, name, function):
        self.spy, self.name, self.function = spy, name, function

    def __call__(self, state, *arguments):
        result = self.function(state, *arguments)
        if self.name == "add":
            self.spy.fractions.append(arguments[2] or 0.0)
        elif self.name in ("finish", "whole"):
            if self.name == "whole":
                self.spy.fractions.append(arguments[1] or 0.0)
            self.spy.updates.append((self.spy.fractions, float(arguments[-1])))
            self.spy.fractions = []
            if len(self.spy.updates) == self.spy.break_after:
                result = result._replace(params=jax.tree.map(lambda p: p * jnp.nan, result.params))
        return result

    def _cache_size(self):
        return self.function._cache_size()


@pytest.fixture(scope="module")
def base():
    """A run whose compiled functions the runs of this module share."""
    return make_run(**RUN)


def prepare(base, break_after=None, eigenvalues=None, task=None, **changes):
    """A run of other settings with the compiled functions of ``base``, spied on.

    Its measurements follow ``eigenvalues``.
    """
    changes = {**RUN, **changes}
    if changes.get("method") == "bl":
        changes.pop("max_batch_size")
    made = make_run(task, **changes)
    spy = Spy(base.functions, break_after)
    run = made._replace(functions=spy.wrapped)
    if eigenvalues is not None:
        script = iter(eigenvalues)

        def measure(params, model_state, v0, block=None):
            value = next(script)
            finite = jnp.float32(0.001 if math.isfinite(value) else math.nan)
            return PowerIterationResult(jnp.float32(value), v0, finite, jnp.int32(1), jnp.asarray(True))

        run = run._replace(measure=measure, measure_final=lambda params, state, v0: measure_constant(v0))
    return run, spy


def measure_constant(v0):
    one = jnp.float32(1)
    return PowerIterationResult(one, v0, one / 8, jnp.int32(1), jnp.asarray(True))


def simulate(epochs, grows_at, *, size, largest, decays=(), fraction=0.0, until=0, per_epoch=N // MICRO):
    """Count by hand: [(micro-batches, lr_scale, fraction)] by update, [updates at the end of each epoch].

    ``grows_at``: the counts of micro-batches from which on the batch doubles, at the next end of an update.
    """
    done, batch, growths, lr, left = 0, size, 0, 1.0, sorted(grows_at)
    attacked = fraction if until else 0.0
    updates, ends = [], []
    while done + batch // MICRO <= epochs * per_epoch:
        updates.append((batch // MICRO, lr, attacked))
        done += batch // MICRO
        while len(ends) < done // per_epoch:
            ends.append(len(updates))
        while left and done >= left[0]:
            left.pop(0)
            if batch < largest:
                batch, growths = min(2 * batch, largest), growths + 1
        lr = batch / size * 0.2 ** sum(done >= epoch * per_epoch for epoch in decays)
        on = done < until * per_epoch and not (growths and batch == largest)
        attacked = fraction / 2**growths if on else 0.0
    return updates, ends + [len(updates)] * (epochs - len(ends))


def assert_calls(spy, want):
    assert [len(fractions) for fractions, _ in spy.updates] == [k for k, _, _ in want]
    np.testing.assert_allclose([scale for _, scale in spy.updates], [scale for _, scale, _ in want], rtol=1e-6)
    for (fractions, _), (k, _, fraction) in zip(spy.updates, want, strict=True):
        np.testing.assert_allclose(fractions, [fraction] * k, rtol=1e-6)


@pytest.fixture(scope="module")
def absa(base, tmp_path_factory):
    """ABSA with real eigenvalues, written to a folder."""
    workdir = tmp_path_factory.mktemp("runs") / "absa"
    run, spy = prepare(base, adversarial_epochs=3)
    return train(run, workdir).summary, read_lines(workdir / "metrics.jsonl"), spy, workdir


def test_absa_doubles_at_each_epoch_and_never_inside_an_update(absa):
    summary, records, spy, _ = absa
    assert all(record["eigenvalue"] > 0 for record in records[:3])  # else the batch would rightly stay
    want, ends = simulate(6, {25, 50, 75}, size=16, largest=128, decays=(3, 5), fraction=0.2, until=3)
    assert_calls(spy, want)
    assert {k for k, _, _ in want} == {2, 4, 8, 16}
    assert [record["updates"] for record in records] == ends
    assert summary["updates"] == len(want)


def test_each_function_is_compiled_once(absa):
    summary, _, _, _ = absa
    assert summary["compilations"] == {
        "begin": 1,
        "add": 2,
        "finish": 1,
    }  # with and without adversarial examples


def test_measurements_end_at_the_maximum(absa):
    _, records, _, _ = absa
    for record in records[:3]:
        assert 0 <= record["residual"] < 1
    for record in records[3:]:
        assert record["eigenvalue"] is None
        assert record["residual"] is None
        assert record["seconds_hessian"] == 0


def test_adversarial_examples_end_after_their_epochs(absa):
    _, records, spy, _ = absa
    assert spy.updates[0][0][0] == pytest.approx(0.2)
    assert [record["adversarial_fraction"] for record in records[4:]] == [0.0, 0.0]
    assert spy.updates[-1][0][0] == 0.0


def test_files_are_complete(absa):
    summary, records, _, workdir = absa
    names = sorted(path.name for path in workdir.iterdir())
    assert names == ["config.json", "curves.png", "metrics.jsonl", "params", "summary.json"]
    for i, record in enumerate(records):
        assert set(record) >= RECORD_FIELDS
        assert record["epoch"] == i + 1
        # An update that ends in the next epoch has all its examples.
        assert 0 <= record["samples"] - (i + 1) * 25 * MICRO < 16 * MICRO
        assert 0 <= record["test_accuracy"] <= 100
        for name in ("seconds_step", "seconds_hessian", "seconds_data"):
            assert record[name] >= 0
    written = json.loads((workdir / "summary.json").read_text())
    assert set(written) >= SUMMARY_FIELDS
    assert written["test_accuracy"] == records[-1]["test_accuracy"]
    assert written["final_batch_size"] == 128
    assert written["samples"] == 6 * 25 * MICRO
    assert written["eigenvalue"] == pytest.approx(summary["eigenvalue"])
    assert written["versions"]["jax"] == jax.__version__
    assert 0 < written["seconds_hessian"] < written["seconds"]
    settings = {name: written[name] for name in ("batch_size", "lr", "patience", "epsilon", "lr_decay_epochs")}
    assert settings == {
        "batch_size": 16,
        "lr": 0.02,
        "patience": 1,
        "epsilon": 0.05,
        "lr_decay_epochs": [3, 5],
    }


def test_training_learns(absa):
    _, records, _, _ = absa
    assert records[-1]["train_loss"] < records[0]["train_loss"] < math.log(10) + 0.5
    assert records[-1]["test_accuracy"] > 50


@pytest.mark.slow
def test_same_seed_same_run_and_another_seed_another(base, absa, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        run, _ = prepare(base, adversarial_epochs=3, seed=seed)
        train(run, tmp_path / name)
    again = read_lines(tmp_path / "again" / "metrics.jsonl")
    other = read_lines(tmp_path / "other" / "metrics.jsonl")
    assert without_seconds(again) == without_seconds(absa[1])
    assert all(a["train_loss"] != b["train_loss"] for a, b in zip(again, other, strict=True))


def test_growth_by_eigenvalue(base, tmp_path):
    # Reference 8 at first; 5 is no fall by 2, 4 is; nan and -1 never grow; 2 does (from 4), 1.9 does not.
    eigenvalues = [8.0, 5.0, 4.0, math.nan, -1.0, 2.0, 1.9, 1.8]
    run, spy = prepare(
        base,
        method="abs",
        measure_every=144,  # 18 micro-batches: inside epochs and inside updates
        patience=0,
        eigenvalues=eigenvalues,
    )
    train(run, tmp_path / "run")
    want, ends = simulate(6, {3 * 18, 6 * 18}, size=16, largest=128, decays=(3, 5))
    assert_calls(spy, want)
    assert {k for k, _, _ in want} == {2, 4, 8}
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["updates"] for record in records] == ends
    # The last measurement of each epoch of 25 micro-batches: after 18, 36, 72, 90, 108 and 144.
    want_shown = [8.0, 5.0, None, -1.0, 2.0, 1.8]
    got = [record["eigenvalue"] for record in records]
    assert [g if g is None else round(g, 4) for g in got] == want_shown


def test_patience(base):
    # Not one fall: it grows at every second measurement, however the value stands.
    run, spy = prepare(base, method="abs", measure_every=80, patience=2, eigenvalues=[5.0] * 15)
    train(run)
    want, _ = simulate(6, {20, 40, 60}, size=16, largest=128, decays=(3, 5))
    assert_calls(spy, want)


@pytest.mark.parametrize(("size", "epochs"), [(8, 1), (24, 2), (104, 3), (200, 2)])
def test_baseline_makes_as_many_updates_as_the_formula(base, size, epochs):
    run, spy = prepare(base, method="bl", batch_size=size, epochs=epochs, eigenvalues=(), lr_decay_epochs=())
    summary = train(run).summary
    assert summary["updates"] == epochs * (N // MICRO) * MICRO // size
    assert {len(fractions) for fractions, _ in spy.updates} == {size // MICRO}
    assert {(scale, *fractions) for fractions, scale in spy.updates} == {(1.0, *[0.0] * (size // MICRO))}
    assert summary["final_batch_size"] == size


@pytest.mark.parametrize("remainder", ["drop", "keep"])
def test_the_remainder(base, tmp_path, remainder):
    run, spy = prepare(
        base,
        task=digits_task(195),
        method="bl",
        batch_size=MICRO,
        epochs=2,
        remainder=remainder,
        eigenvalues=(),
        lr_decay_epochs=(1,),
    )
    train(run, tmp_path / "run")
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    samples = [195, 390] if remainder == "keep" else [192, 384]
    assert [record["samples"] for record in records] == samples
    per_epoch = 25 if remainder == "keep" else 24
    assert [record["updates"] for record in records] == [per_epoch, 2 * per_epoch]
    scales = [scale for _, scale in spy.updates]
    np.testing.assert_allclose(scales, [1.0] * per_epoch + [0.2] * per_epoch, rtol=1e-6)


def test_train_loss_is_the_mean_over_the_examples(base):
    # One update at the very end: the loss of the epoch is that of the first params.
    run, _ = prepare(base, method="bl", batch_size=200, epochs=1, eigenvalues=(), lr_decay_epochs=())
    data = run.task.train.take(np.arange(N))
    logits = forward(jax.tree.map(np.asarray, run.state.params), data["image"])
    shifted = logits - logits.max(1, keepdims=True)
    nll = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(N), data["label"]]
    [record] = train(run).records
    assert record["train_loss"] == pytest.approx(float(nll.mean()), rel=1e-5)


def forward(params, image):
    """The perceptron of the default settings, in NumPy."""
    x = np.asarray(image, np.float64).reshape(len(image), -1) / 255
    for layer in ("Dense_0", "Dense_1"):
        x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"]


def test_accuracy_counts_every_test_image_once(base):
    task, params = base.task, jax.tree.map(np.asarray, base.state.params)
    test = task.test.take(np.arange(len(task.test)))
    right = forward(params, test["image"]).argmax(1) == test["label"]
    [(prefix, evaluation)] = base.evaluate.items()
    assert prefix == "test_"
    assert evaluation(params, {})["accuracy"] == pytest.approx(right.mean(), abs=1e-7)
    for size in (7, 30):  # 30 test images: a last batch with padding, and none
        assert evaluate(task, params, {}, batch_size=size)["accuracy"] == pytest.approx(right.mean(), abs=1e-7)


def test_huge_rate_stops_and_names_the_update(tmp_path):
    run = make_run(method="bl", lr=1e30)
    message = r"not finite at update \d+ \(epoch 1, batch size 16, learning rate 1e\+30\); lower the"
    with pytest.raises(FloatingPointError, match=message):
        train(run, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "diverged.json"]


@pytest.mark.parametrize("often", [True, False])
def test_a_loss_that_breaks_is_told_with_the_epoch_size_and_rate_of_its_update(base, monkeypatch, often):
    # Update 13 begins in epoch 1 and ends in epoch 2, where the rate is a fifth.
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_CHECKS", -1 if often else 1e9)
    run, _ = prepare(base, method="bl", break_after=12, eigenvalues=(), lr_decay_epochs=(1,))
    with pytest.raises(FloatingPointError, match=r"update 13 \(epoch 1, batch size 16, learning rate 0\.02\)"):
        train(run)
    # After update 10 the batch doubles, and the rate with it.
    falling = [9.0, *[1.0] * 14]
    run, _ = prepare(base, method="abs", measure_every=80, patience=0, break_after=9, eigenvalues=falling)
    with pytest.raises(FloatingPointError, match=r"update 10 \(epoch 1, batch size 16, learning rate 0\.02\)"):
        train(run)
    run, spy = prepare(base, method="abs", measure_every=80, patience=0, epochs=1, eigenvalues=falling)
    train(run)
    assert [len(fractions) for fractions, _ in spy.updates] == [2] * 10 + [4]


def test_nan_keeps_what_was_written(base, tmp_path):
    # 13 updates of two micro-batches end in epoch 2; the params break after update 15.
    run, _ = prepare(base, method="bl", break_after=15, eigenvalues=(), lr_decay_epochs=())
    with pytest.raises(FloatingPointError, match=r"not finite at update 16 \(epoch 2, batch size 16"):
        train(run, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "config.json",
        "diverged.json",
        "metrics.jsonl",
    ]
    [record] = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert record["epoch"] == 1
    assert record["updates"] == 13


def test_a_measurement_that_fails_does_not_spoil_the_next(base):
    starts = []

    def measure(params, model_state, v0, block=None):
        starts.append(v0)
        bad = len(starts) == 1
        vector = jax.tree.map(lambda v: v * jnp.nan if bad else v, v0)
        value = jnp.float32(math.nan if bad else 3.0)
        return PowerIterationResult(value, vector, value, jnp.int32(1), jnp.asarray(not bad))

    run, _ = prepare(base, method="abs", epochs=2, patience=0, eigenvalues=(), lr_decay_epochs=())
    train(run._replace(measure=measure))
    assert len(starts) == 2
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(starts))
    jax.tree.map(np.testing.assert_array_equal, *starts)


def test_each_measurement_starts_from_the_last_vector(base):
    starts, ends, final = [], [], []

    def measure(params, model_state, v0, block=None):
        starts.append(v0)
        ends.append(optax.tree.scale(2.0, v0))
        return PowerIterationResult(jnp.float32(3), ends[-1], jnp.float32(0), jnp.int32(1), jnp.asarray(True))

    run, _ = prepare(base, method="abs", epochs=3, patience=0, eigenvalues=(), lr_decay_epochs=())
    run = run._replace(measure=measure, measure_final=lambda p, s, v0: final.append(v0) or measure_constant(v0))
    train(run)
    assert len(starts) == 3
    for start, end in zip([*starts[1:], *final], ends, strict=True):
        jax.tree.map(np.testing.assert_array_equal, start, end)


def test_a_rule_of_the_last_layer_is_told_its_eigenvalue(base):
    run, _ = prepare(base, method="abs", epochs=3, lr_decay_epochs=())
    rule = hessian_adaptive(
        2 * MICRO, 16 * MICRO, measure_every=run.epoch_examples, patience=None, block="last_layer"
    )
    starts, script = [], iter((8.0, 3.0, 1.0))

    def measure(params, model_state, v0, block=None):
        assert block == "Dense_2"
        starts.append(v0)
        return measure_constant(optax.tree.scale(2.0, v0))._replace(eigenvalue=jnp.float32(next(script)))

    run = run._replace(rule=rule, measure=measure)
    records = train(run._replace(measure_final=lambda p, s, v0: measure_constant(v0))).records
    assert [record["eigenvalue"] for record in records] == [8.0, 3.0, 1.0]
    assert [record["batch_size"] for record in records] == [2 * MICRO, 2 * MICRO, 4 * MICRO]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), *starts[:2])


def test_the_rule_decays_by_examples(base):
    run, _ = prepare(base, method="bl", lr_decay_epochs=(2, 4))
    state = run.rule.init()
    scales = []
    for samples in (2 * N - 1, 2 * N, 4 * N - 1, 4 * N):
        state = run.rule.update(Observation(samples), state)
        scales.append(float(state.lr_scale))
    np.testing.assert_allclose(scales, [1, 0.2, 0.2, 0.04], rtol=1e-6)


def test_the_rule_decays_beyond_the_examples_that_an_int32_counts(base):
    run, _ = prepare(base, method="bl", lr_decay_epochs=(10**9,))
    state = loop_state.start(run)
    assert int(state.controller.observe_at) == 10**9 * N > 2**31
    update = jax.jit(run.rule.update)
    for samples, scale in ((10**9 * N - 1, 1.0), (10**9 * N, 0.2)):
        observed = loop._observe(run, state._replace(samples=samples), update, Clock())
        assert float(observed.controller.lr_scale) == np.float32(scale)
    snapshot = Snapshot(observed, [], {})
    saved = restore(state, arrays_of(observed), json.loads(json.dumps(record_of(snapshot))))
    assert saved.state.samples == 10**9 * N


def test_a_schedule_goes_by_examples_and_is_recorded(base):
    run, spy = prepare(base, method="bl", epochs=2, eigenvalues=(), lr_decay_epochs=())
    total = 2 * N
    records = train(run._replace(schedule=lambda samples: 1 - samples / total)).records
    want = [1 - 2 * MICRO * i / total for i in range(len(spy.updates))]
    np.testing.assert_allclose([scale for _, scale in spy.updates], want, rtol=1e-6)
    assert records[0]["lr"] == pytest.approx(SETTINGS["lr"] * (1 - 12 * 2 * MICRO / total))


@pytest.mark.slow
@pytest.mark.parametrize("remainder", ["drop", "keep"])
@pytest.mark.parametrize("method", ["bl", "timer"])
def test_the_rates_of_a_plan_are_those_of_its_run(method, remainder):
    grows = {"max_batch_size": 8 * MICRO, "patience": 1} if method == "timer" else {}
    given = {**SETTINGS, "method": method, **grows, "schedule": "cosine", "warmup_epochs": 1}
    given = {name: value for name, value in given.items() if name != "lr_decay_epochs"}
    given |= {"remainder": remainder, "batch_size": 3 * MICRO if method == "bl" else 2 * MICRO}
    parts = assemble(given, digits_task(train=N - 3))
    records = fit(parts.task, parts.optimizer, parts.rule, **parts.options).records
    planned = read_rule(given, N - 3)
    np.testing.assert_allclose(
        planned.rates(planned.plans(whole_updates=True).most), [r["lr"] for r in records], rtol=1e-6
    )
    slides = planned.plans(whole_updates=False).most
    total = slides.epochs[-1].samples
    before = total - slides.epochs[-1].batch_size
    warmup = total // SETTINGS["epochs"]
    last = SETTINGS["lr"] * slides.epochs[-1].lr_scale
    assert planned.rates(slides)[-1] == pytest.approx(
        last * (1 + math.cos(math.pi * (before - warmup) / (total - warmup))) / 2
    )


@pytest.mark.slow
def test_any_optax_chain_is_scaled_once():
    parts = assemble({**SETTINGS, "method": "bl", "epochs": 1, "lr_decay_epochs": ()}, digits_task())

    def go(tx):
        options = {**parts.options, "record": {}, "schedule": lambda samples: 0.5}
        return fit(parts.task, tx, parts.rule, **options).params

    plain = go(optax.sgd(0.1))
    itself = go(optax.chain(scale_by_batch_size(), optax.sgd(0.1)))
    half = fit(
        parts.task, optax.sgd(0.05), parts.rule, **{**parts.options, "record": {}, "schedule": None}
    ).params
    for one in (plain, itself):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, half)
