"""`evaluate` against counting by hand."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses, misleading, outcomes
from hessabs.attacks.evaluate import report
from tests.attacks.cases import KEY, LOSS, PARAMS, fallen, logits_fn, make_batch, make_params, size_of

pytestmark = pytest.mark.sampled

BATCH = make_batch(PARAMS, n=30)


@pytest.mark.slow
def test_rows_are_what_the_attacks_do():
    make = {"fgsm": attacks.fgsm, "pgd": lambda epsilon: attacks.pgd(epsilon, steps=5)}
    minimal = {"deepfool": attacks.deepfool(norm="linf")}
    rows = attacks.evaluate(LOSS, PARAMS, BATCH, make, [0.0, 0.05, 0.2], KEY, minimal=minimal)
    table = {(row.attack, row.epsilon): row for row in rows}
    assert len(rows) == len(table) == 1 + 3 * 4
    right = ~fallen(PARAMS, BATCH)
    assert table["clean", 0.0].accuracy == right.mean()
    lengths = size_of(BATCH["image"], "linf")
    for epsilon in (0.0, 0.05, 0.2):
        got = attacks.fgsm(epsilon)(LOSS, PARAMS, BATCH)
        fell = fallen(PARAMS, got) & right
        row = table["fgsm", epsilon]
        np.testing.assert_array_equal(row.withstood, right & ~fell)
        assert row.accuracy == pytest.approx((right & ~fell).mean())
        relative = size_of(got["image"] - BATCH["image"], "linf")[fell] / lengths[fell]
        np.testing.assert_allclose(row.mean_relative, relative.mean() if fell.any() else 0, rtol=1e-5)
        np.testing.assert_allclose(row.max_relative, relative.max(initial=0), rtol=1e-5)
        each = [table[name, epsilon].withstood for name in ("fgsm", "pgd", "deepfool")]
        np.testing.assert_array_equal(table["worst case", epsilon].withstood, np.all(each, axis=0))
    walked = minimal["deepfool"](LOSS, PARAMS, BATCH)
    within = size_of(walked["image"] - BATCH["image"], "linf") <= 0.2
    want = right & ~(fallen(PARAMS, walked) & within)
    np.testing.assert_array_equal(table["deepfool", 0.2].withstood, want)
    assert table["deepfool", 0.0].accuracy == right.mean()
    assert all(row.seconds_per_image > 0 for row in rows[1:])


def test_an_attack_that_cheats_fells_nothing():
    def too_far(epsilon):
        return lambda loss, params, batch, key=None: {**batch, "image": 1 - batch["image"]}

    with pytest.warns(
        UserWarning, match=r"Results of far lie outside .* 29 of 29 at epsilon 0\.01\. Are its norm"
    ):
        rows = attacks.evaluate(LOSS, PARAMS, BATCH, {"far": too_far}, [0.01])
    assert fallen(PARAMS, too_far(0.01)(LOSS, PARAMS, BATCH)).sum() > fallen(PARAMS, BATCH).sum()
    assert rows[1].accuracy == rows[0].accuracy


@pytest.mark.parametrize(
    ("dtype", "epsilon"), [(jnp.float32, 1e-3), (jnp.float32, 1e-5), (jnp.bfloat16, 8 / 255)]
)
def test_one_rounding_of_a_pixel_is_no_way_out_of_the_ball(dtype, epsilon):
    # Two pixels, the darker one wins after a step of epsilon each; the closed form says which ones fall.
    first = jnp.asarray(np.linspace(0.55, 0.95, 50), dtype)
    gap = np.linspace(0.5, 3.0, 50) * epsilon
    batch = {"image": jnp.stack([first, (first - gap).astype(dtype)], axis=1), "label": jnp.zeros(50, int)}
    loss_fn = losses.cross_entropy(lambda w, x: x @ w)

    def plain(size):  # without a projection of its own: what float arithmetic makes of x + epsilon
        return lambda loss, w, b, key=None: {
            **b,
            "image": (b["image"] + dtype(size) * jnp.array([-1, 1], dtype)),
        }

    made = {"plain": plain, "fgsm": attacks.fgsm}
    clean, *rows = attacks.evaluate(loss_fn, jnp.eye(2, dtype=dtype), batch, made, [epsilon])
    for row, attack in zip(rows, made.values(), strict=False):
        moved = np.float64(attack(epsilon)(loss_fn, jnp.eye(2, dtype=dtype), batch)["image"])
        np.testing.assert_array_equal(row.withstood, clean.withstood & (moved[:, 0] >= moved[:, 1]))
        assert 0 < row.accuracy < clean.accuracy


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_result_that_is_outside_by_one_percent_is_rejected(norm):
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0.2, 0.8, (40, 3, 256)).astype(np.float32)
    steps = rng.normal(size=inputs.shape)
    steps *= 0.05 / size_of(steps, norm)[:, None, None]
    for factor, outside in ((1.0, False), (1.01, True)):
        sizes, least = outcomes.measure((inputs + factor * steps).astype(np.float32), inputs, norm)
        np.testing.assert_allclose(sizes, 0.05 * factor, rtol=2e-3 if norm == "l1" else 1e-3)
        if norm != "l1":  # 768 pixels of one rounding each are 1e-3 of this ball, in L1
            np.testing.assert_array_equal(least > 0.05, np.full(40, outside))
        else:
            assert not outside or np.all(least > 0.05 * (1.01 - 768 * 1.2e-7 / 0.05))


@pytest.mark.slow
def test_accuracy_does_not_rise_with_epsilon_where_what_fell_is_kept():
    # The network is wrong near 0.6 only, and one step of 0.3 from 0.5 jumps over it.
    loss_fn = losses.cross_entropy(lambda w, x: jnp.concatenate([0 * x, 0.05 - jnp.abs(x - 0.6)], axis=1))
    batch = {"image": jnp.array([[0.5], [0.35]]), "label": jnp.array([0, 0])}
    arguments = (loss_fn, None, batch, {"fgsm": attacks.fgsm}, [0.3, 0.1])
    jumped = {row.epsilon: row for row in attacks.evaluate(*arguments)}
    kept = {row.epsilon: row for row in attacks.evaluate(*arguments, keep_fallen=True)}
    assert [jumped[e].withstood.tolist() for e in (0.1, 0.3)] == [[False, True], [True, False]]
    assert [kept[e].withstood.tolist() for e in (0.1, 0.3)] == [[False, True], [False, False]]
    assert list(kept) == [0.0, 0.3, 0.1]
    # The size is that of the perturbation that felled it.
    np.testing.assert_allclose(kept[0.3].mean_relative, (0.1 / 0.5 + 0.3 / 0.35) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss_fn", "options", "message"),
    [
        (lambda params, batch: 0.0, {}, "evaluate needs the logits"),
        (losses.margin(logits_fn, targeted=True), {}, "evaluate counts labels, got a loss with targeted=True"),
        (LOSS, {"epsilons": [-1.0]}, "`epsilon` must be at least 0 and finite, got -1"),
        (LOSS, {"norm": "l3"}, "`norm` must be one of"),
        (LOSS, {"attacks": {"clean": attacks.fgsm}}, "Every attack needs a name of its own"),
        (LOSS, {"minimal": {"fgsm": attacks.deepfool()}}, "Every attack needs a name of its own"),
        (LOSS, {"bounds": (0.4, 0.6)}, "outside `bounds`"),
        (
            LOSS,
            {"attacks": {"fgsm": attacks.fgsm(0.1)}},
            "`attacks` must map each name to a function from epsilon",
        ),
        (
            LOSS,
            {"attacks": {"deepfool": attacks.deepfool}},
            "An attack that takes no epsilon belongs in `minimal`",
        ),
        (LOSS, {"attacks": attacks.fgsm}, "`attacks` must map a name to a function from epsilon"),
        (
            LOSS,
            {"minimal": {"deepfool": attacks.deepfool}},
            "`minimal` must map each name to an attack, deepfool",
        ),
        (LOSS, {"minimal": attacks.deepfool()}, "`minimal` must map a name to an attack"),
        (LOSS, {"key": 0}, r"`key` must be a random key, got 0: pass `key=jax\.random\.key\(seed\)`"),
        (LOSS, {"epsilons": ["8/255"]}, "`epsilon` must be a number, got '8/255'"),
        (
            LOSS,
            {"epsilons": "0.1"},
            "`epsilons` must be a sequence of numbers, each for all examples, got '0.1'",
        ),
        (LOSS, {"epsilons": 0.1}, "`epsilons` must be a sequence of numbers, each for all examples, got 0.1"),
        (LOSS, {"epsilons": np.full((1, 30), 0.1)}, "`epsilons` must be a sequence of numbers, each for all"),
    ],
)
def test_refuses(loss_fn, options, message):
    arguments = {"attacks": {"fgsm": attacks.fgsm}, "epsilons": [0.1], **options}
    with pytest.raises(ValueError, match=message):
        attacks.evaluate(loss_fn, PARAMS, BATCH, **arguments)


def test_refuses_an_empty_batch():
    batch = jax.tree.map(lambda x: x[:0], BATCH)
    with pytest.raises(ValueError, match=r"The batch has no examples, got inputs of shape \(0, 2, 3\)"):
        attacks.evaluate(LOSS, PARAMS, batch, {}, [])


def test_transfer_makes_the_examples_on_the_source():
    other = make_params(1)
    make = {"pgd": lambda epsilon: attacks.pgd(epsilon, steps=5)}
    with pytest.warns(UserWarning, match="from the first error of their source, where pgd stopped"):
        rows = attacks.evaluate(LOSS, PARAMS, BATCH, make, [0.2], KEY, source=(LOSS, other))
    made = attacks.pgd(0.2, steps=5)(LOSS, other, BATCH, jax.random.fold_in(KEY, 0))
    want = ~fallen(PARAMS, BATCH) & ~fallen(PARAMS, made)
    np.testing.assert_array_equal(rows[1].withstood, want)


def test_a_run_that_compiled_is_a_first_one(monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 24.0])  # a run of 10 s, of which JAX compiles for 6, and one of 4 s
    compiled = iter([0.0, 6.0, 6.0, 6.00002])
    monkeypatch.setattr(outcomes, "time", mock.Mock(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(outcomes, "compiling", mock.Mock(seconds=lambda everywhere: next(compiled)))
    options = {"norm": "l2", "bounds": (0.0, 1.0), "inputs_key": "image"}
    runs = [outcomes.run(attacks.fgsm(0.1), LOSS, PARAMS, BATCH, None, **options)[0] for _ in range(2)]
    assert [run.seconds for run in runs] == pytest.approx([4.0, 4.0], abs=1e-4)
    assert [run.first_run for run in runs] == [True, False]


def test_batches_after_the_first_one_tell_the_time_of_an_image():
    right, sizes = np.ones(10, bool), np.zeros(10)
    first = outcomes.Outcome(right, sizes, 9.0, 30.0, ~right, sizes, True)
    next_one = first._replace(seconds=2.0, seconds_compile=0.0, first_run=False)
    joined = outcomes.join([first, next_one, next_one])
    assert joined == joined._replace(seconds=6.0, seconds_compile=30.0, first_run=False)
    assert len(joined.stands) == 30
    alone = outcomes.join([first, first])
    assert (alone.seconds, alone.seconds_compile, alone.first_run) == (18.0, 60.0, True)
    clean = outcomes.Clean(np.ones(20, bool), np.zeros(20, bool), np.ones(20))
    rows = outcomes.table(clean, {("pgd", 0.1): alone}, keep_fallen=False)
    assert [(row.seconds_per_image, row.first_run) for row in rows] == [(0.0, False), (0.9, True)]


@pytest.mark.slow
def test_batches_that_are_joined_are_the_whole():
    epsilons = [0.05, 0.2]
    options = {"norm": "l2", "bounds": (0.0, 1.0), "inputs_key": "image"}
    walk = {"walk": attacks.deepfool()}
    make = {"l2grad": attacks.l2grad}
    want = attacks.evaluate(LOSS, PARAMS, BATCH, make, epsilons, minimal=walk, norm="l2", keep_fallen=True)
    batches = [jax.tree.map(lambda x, rows=rows: x[rows], BATCH) for rows in (slice(0, 15), slice(15, 30))]

    def run(attack):
        return outcomes.join([outcomes.run(attack, LOSS, PARAMS, b, None, **options)[0] for b in batches])

    results = {("walk", e): run(walk["walk"]) for e in epsilons} | {
        ("l2grad", e): run(attacks.l2grad(e)) for e in epsilons
    }
    clean = outcomes.join([outcomes.look(LOSS, PARAMS, b, "image", "l2") for b in batches])
    signs = outcomes.join([misleading.look(LOSS, PARAMS, b, "image", ~fallen(PARAMS, b)) for b in batches])
    got, messages = report(clean, signs, results, keep_fallen=True, minimal=walk, black_box=())
    assert messages == []
    by_name = {(row.attack, row.epsilon): row for row in got}
    assert len(by_name) == len(want) == 7
    for row in want:
        other = by_name[row.attack, row.epsilon]
        np.testing.assert_array_equal(other.withstood, row.withstood)
        np.testing.assert_allclose(other.mean_relative, row.mean_relative, rtol=1e-4)
        assert other.accuracy == row.accuracy
    assert all(row.seconds_per_image > 0 for row in got[1:])
    assert signs.random.shape == (2,)


@pytest.mark.slow
def test_attacks_on_a_source_that_go_on_are_no_cause(recwarn):
    make = {"pgd": lambda epsilon: attacks.pgd(epsilon, steps=5, early_exit=False), "fgsm": attacks.fgsm}
    attacks.evaluate(LOSS, PARAMS, BATCH, make, [0.2], KEY, source=(LOSS, make_params(1)))
    assert not recwarn.list


def test_the_labels_of_the_batch_judge_and_not_those_that_an_attack_returns():
    def with_targets(epsilon):
        def attack(loss_fn, params, batch, key=None):
            return {**attacks.fgsm(epsilon)(loss_fn, params, batch), "label": (batch["label"] + 1) % 4}

        return attack

    rows = attacks.evaluate(LOSS, PARAMS, BATCH, {"own": with_targets, "fgsm": attacks.fgsm}, [0.0, 0.2])
    found = {(row.attack, row.epsilon): row.withstood for row in rows}
    for epsilon in (0.0, 0.2):
        np.testing.assert_array_equal(found["own", epsilon], found["fgsm", epsilon])
