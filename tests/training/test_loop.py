"""A whole run, held against a simulation that knows the rule and nothing of the code."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import models
from hessabs.batch_size import Observation, hessian_adaptive
from hessabs.curvature import PowerIterationResult
from hessabs.data import Dataset, eval_batches, load
from hessabs.training import Config, loop, loop_state, set_up, train
from hessabs.training import setup as setup_lib
from hessabs.training.clock import Clock
from hessabs.training.config import resolve
from hessabs.training.evaluate import make_accuracy
from hessabs.training.metrics import read_lines
from hessabs.training.saving.snapshot import Snapshot, arrays_of, record_of, restore

N, TEST, MICRO = 200, 30, 8  # 25 micro-batches an epoch: odd, so that epochs end inside updates
RECORD_FIELDS = {
    "epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction", "train_loss", "test_accuracy",
    "eigenvalue", "residual", "seconds_step", "seconds_hessian", "seconds_data",
}  # fmt: skip
SUMMARY_FIELDS = {
    "method", "dataset", "model", "seed", "epochs", "updates", "test_accuracy", "fgsm_accuracy",
    "final_batch_size", "eigenvalue", "compilations", "seconds", "seconds_hessian", "versions",
}  # fmt: skip
CONFIG = Config(
    dataset="digits",
    epochs=6,
    batch_size=2 * MICRO,
    micro_batch_size=MICRO,
    max_batch_size=16 * MICRO,
    lr=0.02,
    lr_decay_epochs=(3, 5),
    patience=1,
    hessian_batch_size=64,
    epsilon=0.05,
)


class Spy:
    """Step functions that note their calls, and may be told to break the params before an update."""

    def __init__(self, functions, break_after=None):
        self.calls, self.updates, self.break_after = [], 0, break_after
        self.functions = functions
        self.wrapped = functions._replace(
            **{name: _Counted(self, name, getattr(functions, name)) for name in functions.compilations()}
        )

    def by_update(self):
        """Split the calls: [(calls that accumulate, lr_scale)], and the calls left over."""
        updates, current = [], []
        for name, argument in self.calls:
            if name == "apply_update":
                updates.append((current, argument))
                current = []
            else:
                current.append((name, argument))
        return updates, current


class _Counted:
    def __init__(self, spy, name, function):
        self.spy, self.name, self.function = spy, name, function

    def __call__(self, state, *arguments):
        # The batch's weights are what matters of it: the rest is (fraction) or (lr_scale). An update of one
        # micro-batch is noted as its two halves.
        is_update = "update" in self.name
        *fraction, lr_scale = arguments if is_update else (*arguments, None)
        fraction = fraction[1:] if self.name != "apply_update" else []
        if self.name != "apply_update":
            half = self.name.replace("update", "accumulate")
            self.spy.calls.append((half, fraction[0] if fraction else None))
        if is_update:
            self.spy.calls.append(("apply_update", lr_scale))
        state = self.function(state, *arguments)
        self.spy.updates += is_update
        if is_update and self.spy.updates == self.spy.break_after:
            state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
        return state

    def _cache_size(self):
        return self.function._cache_size()


def small_digits():
    digits = load("digits")
    return Dataset(
        "digits",
        {name: array[:N] for name, array in digits.train.items()},
        {name: array[:TEST] for name, array in digits.test.items()},
        10,
    )


@pytest.fixture(scope="module")
def base():
    """A set-up whose compiled functions and first params the runs of this module share."""
    return set_up(CONFIG, small_digits())


def prepare(base, break_after=None, eigenvalues=None, dataset=None, **changes):
    """A run of other settings with the compiled functions of ``base``, spied on.

    Its learning rate is that of ``base``, bound in the functions; its measurements follow ``eigenvalues``.
    """
    dataset = dataset or base.dataset
    config = resolve(CONFIG._replace(**changes), len(dataset.train["label"]))
    per_epoch = setup_lib.epoch_examples(config, len(dataset.train["label"]))
    spy = Spy(base.functions, break_after)
    first = base if config.seed == CONFIG.seed else set_up(config, dataset)
    run = base._replace(
        config=config,
        dataset=dataset,
        controller=setup_lib.make_controller(config, per_epoch),
        functions=spy.wrapped,
        state=jax.tree.map(jnp.copy, first.state),  # a run donates its state
    )
    if eigenvalues is not None:
        script = iter(eigenvalues)

        def measure(state, v0):
            value = next(script)
            finite = jnp.float32(0.001 if math.isfinite(value) else math.nan)
            return PowerIterationResult(
                eigenvalue=jnp.float32(value),
                eigenvector=v0,
                residual=finite,
                num_iters=jnp.int32(1),
                converged=jnp.asarray(True),
            )

        run = run._replace(measure=measure, measure_final=lambda state, v0: measure_constant(v0))
    return run, spy


def measure_constant(v0):
    one = jnp.float32(1)
    return PowerIterationResult(one, v0, one / 8, jnp.int32(1), jnp.asarray(True))


def simulate(epochs, grows_at, *, size, largest, decays=(), fraction=0.0, until=0, per_epoch=N // MICRO):
    """Count by hand: [(micro-batches, lr_scale, fractions)] by update, [updates at the end of each epoch].

    ``grows_at``: the counts of micro-batches after which the batch doubles.
    """
    done, decided_size, growths = 0, size, 0
    updates, ends, parts = [], [], []
    latched = (size, 1.0, fraction if until > 0 else 0.0)
    for micro in range(1, epochs * per_epoch + 1):
        parts.append(latched[2])
        done += 1
        if done * MICRO == latched[0]:
            updates.append((done, latched[1], parts))
            done, parts = 0, []
        if micro in grows_at and decided_size < largest:
            decided_size, growths = min(2 * decided_size, largest), growths + 1
        if done == 0:
            decay = 0.2 ** sum(micro >= epoch * per_epoch for epoch in decays)
            attacked = micro < until * per_epoch and not (growths and decided_size == largest)
            latched = (decided_size, decided_size / size * decay, fraction / 2**growths if attacked else 0.0)
        if micro % per_epoch == 0:
            ends.append(len(updates))
    return updates, ends


def assert_calls(spy, want):
    updates, rest = spy.by_update()
    assert [len(calls) for calls, _ in updates] == [k for k, _, _ in want]
    np.testing.assert_allclose([scale for _, scale in updates], [scale for _, scale, _ in want], rtol=1e-6)
    for (calls, _), (_, _, fractions) in zip(updates, want, strict=True):
        assert [name == "accumulate_adversarial" for name, _ in calls] == [f > 0 for f in fractions]
        np.testing.assert_allclose([argument or 0.0 for _, argument in calls], fractions, rtol=1e-6)
    return rest


@pytest.fixture(scope="module")
def absa(base, tmp_path_factory):
    """ABSA with real eigenvalues, written to a folder."""
    workdir = tmp_path_factory.mktemp("runs") / "absa"
    run, spy = prepare(base, method="absa", adversarial_epochs=3)
    return train(run, workdir).summary, read_lines(workdir / "metrics.jsonl"), spy, workdir


def test_absa_doubles_at_each_epoch_and_never_inside_an_update(absa):
    summary, records, spy, _ = absa
    assert all(record["eigenvalue"] > 0 for record in records[:3])  # else the batch would rightly stay
    want, ends = simulate(
        6,
        {25, 50, 75},
        size=16,
        largest=128,
        decays=(3, 5),
        fraction=0.2,
        until=3,
    )
    rest = assert_calls(spy, want)
    assert {k for k, _, _ in want} == {2, 4, 8, 16}
    assert [record["updates"] for record in records] == ends
    assert summary["updates"] == len(want)
    assert len(rest) == 6 * 25 - sum(k for k, _, _ in want)


def test_each_function_is_compiled_once(absa):
    summary, _, _, _ = absa
    assert summary["compilations"] == {"accumulate": 1, "accumulate_adversarial": 1, "apply_update": 1}


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
    # The first update may have begun before the end of epoch 3; none begins after it.
    names = [name for name, _ in spy.calls if name != "apply_update"]
    assert names[0] == "accumulate_adversarial"
    last = max(i for i, name in enumerate(names) if name == "accumulate_adversarial")
    assert 3 * 25 - 1 <= last < 3 * 25 + 8
    assert [record["adversarial_fraction"] for record in records[4:]] == [0.0, 0.0]


def test_files_are_complete(absa):
    summary, records, _, workdir = absa
    names = sorted(path.name for path in workdir.iterdir())
    assert names == ["curves.png", "metrics.jsonl", "params", "summary.json"]
    for i, record in enumerate(records):
        assert set(record) >= RECORD_FIELDS
        assert record["epoch"] == i + 1
        assert record["samples"] == (i + 1) * 25 * MICRO
        assert 0 <= record["test_accuracy"] <= 100
        for name in ("seconds_step", "seconds_hessian", "seconds_data"):
            assert record[name] >= 0
    written = json.loads((workdir / "summary.json").read_text())
    assert set(written) >= SUMMARY_FIELDS | set(Config._fields)
    assert written["test_accuracy"] == records[-1]["test_accuracy"]
    assert written["final_batch_size"] == 128
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
    # Decided by the data: left open are its folder, what fits the memory, and what this run has not.
    left_open = [name for name in Config._fields if written[name] is None]
    assert set(left_open) == {"data_dir", "image_size", "max_micro_batch_size", "mesh", "attack_step_size"}


def test_training_learns(absa):
    _, records, _, _ = absa
    assert records[-1]["train_loss"] < records[0]["train_loss"] < math.log(10) + 0.5
    assert records[-1]["test_accuracy"] > 50


def without_seconds(records):
    return [{k: v for k, v in record.items() if not k.startswith("seconds")} for record in records]


def test_same_seed_same_run_and_another_seed_another(base, absa, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        run, _ = prepare(base, method="absa", adversarial_epochs=3, seed=seed)
        train(run, tmp_path / name)
    again = read_lines(tmp_path / "again" / "metrics.jsonl")
    other = read_lines(tmp_path / "other" / "metrics.jsonl")
    assert without_seconds(again) == without_seconds(absa[1])
    assert all(a["train_loss"] != b["train_loss"] for a, b in zip(again, other, strict=True))


def test_growth_by_eigenvalue_alone(base, tmp_path):
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
    run, spy = prepare(
        base,
        method="bl",
        batch_size=size,
        max_batch_size=None,
        epochs=epochs,
        eigenvalues=(),
        lr_decay_epochs=(),
    )
    summary = train(run).summary
    assert summary["updates"] == epochs * (N // MICRO) * MICRO // size
    assert {len(calls) for calls, _ in spy.by_update()[0]} == {size // MICRO}
    assert {scale for _, scale in spy.by_update()[0]} == {1.0}
    assert {name for name, _ in spy.calls} == {"accumulate", "apply_update"}
    assert summary["final_batch_size"] == size


@pytest.mark.parametrize("keep_remainder", [False, True])
def test_the_remainder(base, tmp_path, keep_remainder):
    dataset = small_digits()
    dataset = dataset._replace(train={name: array[:195] for name, array in dataset.train.items()})
    run, spy = prepare(
        base,
        method="bl",
        batch_size=MICRO,
        dataset=dataset,
        epochs=2,
        keep_remainder=keep_remainder,
        eigenvalues=(),
        lr_decay_epochs=(1,),
    )
    train(run, tmp_path / "run")
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    samples = [195, 390] if keep_remainder else [192, 384]
    assert [record["samples"] for record in records] == samples
    per_epoch = 25 if keep_remainder else 24
    assert [record["updates"] for record in records] == [per_epoch, 2 * per_epoch]
    scales = [scale for _, scale in spy.by_update()[0]]
    np.testing.assert_allclose(scales, [1.0] * per_epoch + [0.2] * per_epoch, rtol=1e-6)


def test_train_loss_is_the_mean_over_the_examples(base):
    # One update at the very end: the loss of the epoch is that of the first params.
    run, _ = prepare(base, method="bl", batch_size=200, epochs=1, eigenvalues=(), lr_decay_epochs=())
    data = base.dataset.train
    logits = forward(jax.tree.map(np.asarray, base.state.params), data["image"])
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


@pytest.mark.parametrize("size", [7, 30])  # 30 test images: a last batch with padding, and none
def test_accuracy_counts_every_test_image_once(base, size):
    test = base.dataset.test
    right = forward(jax.tree.map(np.asarray, base.state.params), test["image"]).argmax(1) == test["label"]
    accuracy = make_accuracy(models.create("mlp", 10), list(eval_batches(test, size)))
    assert accuracy(base.state) == pytest.approx(100 * right.mean(), abs=1e-9)
    assert base.accuracy(base.state) == pytest.approx(100 * right.mean(), abs=1e-9)


def test_huge_rate_stops_and_names_the_update(tmp_path):
    run = set_up(CONFIG._replace(method="bl", lr=1e30), small_digits())
    message = r"not finite at update \d+ \(epoch 1, batch size 16, learning rate 1e\+30\); lower --lr"
    with pytest.raises(FloatingPointError, match=message):
        train(run, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_nan_keeps_what_was_written(base, tmp_path):
    # 12 updates of two micro-batches end in epoch 1; the params break after update 15, in epoch 2.
    run, _ = prepare(base, method="bl", break_after=15, eigenvalues=(), lr_decay_epochs=())
    with pytest.raises(FloatingPointError, match=r"not finite at update 16 \(epoch 2, batch size 16"):
        train(run, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]
    [record] = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert record["epoch"] == 1
    assert record["updates"] == 12


def test_a_measurement_that_fails_does_not_spoil_the_next(base):
    starts = []

    def measure(state, v0):
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
    starts, ends = [], []

    def measure(state, v0):
        starts.append(v0)
        ends.append(optax.tree.scale(2.0, v0))
        return PowerIterationResult(jnp.float32(3), ends[-1], jnp.float32(0), jnp.int32(1), jnp.asarray(True))

    run, _ = prepare(base, method="abs", epochs=3, patience=0, eigenvalues=(), lr_decay_epochs=())
    final = []
    run = run._replace(measure=measure, measure_final=lambda s, v0: final.append(v0) or measure_constant(v0))
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

    def measure(state, v0):
        starts.append(v0)
        return measure_constant(optax.tree.scale(2.0, v0))._replace(eigenvalue=jnp.float32(next(script)))

    run = run._replace(controller=rule, measure=None, measure_last_layer=measure)
    records = train(run._replace(measure_final=lambda state, v0: measure_constant(v0))).records
    assert [record["eigenvalue"] for record in records] == [8.0, 3.0, 1.0]
    assert [record["batch_size"] for record in records] == [2 * MICRO, 2 * MICRO, 4 * MICRO]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(2 * a, b), *starts[:2])


def test_controller_decays_by_examples(base):
    run, _ = prepare(base, method="bl", lr_decay_epochs=(2, 4))
    state = run.controller.init()
    scales = []
    for samples in (2 * N - 1, 2 * N, 4 * N - 1, 4 * N):
        state = run.controller.update(Observation(samples), state)
        scales.append(float(state.lr_scale))
    np.testing.assert_allclose(scales, [1, 0.2, 0.2, 0.04], rtol=1e-6)


def test_controller_decays_beyond_the_examples_that_an_int32_counts(base):
    run, _ = prepare(base, method="bl", lr_decay_epochs=(10**9,), adversarial_epochs=2 * 10**9)
    state = loop_state.start(run)
    assert int(state.controller.observe_at) == 10**9 * N > 2**31
    update = jax.jit(run.controller.update)
    for samples, scale in ((10**9 * N - 1, 1.0), (10**9 * N, 0.2)):
        observed = loop._observe(run, state._replace(samples=samples), update, Clock())
        assert float(observed.controller.lr_scale) == np.float32(scale)
    snapshot = Snapshot(observed, [], {})
    saved = restore(state, arrays_of(observed), json.loads(json.dumps(record_of(snapshot))))
    assert saved.state.samples == 10**9 * N
    jax.tree.map(np.testing.assert_array_equal, saved.state.controller, observed.controller)
