"""`evaluate` against counting by hand."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses
from tests.attacks.cases import KEY, LOSS, PARAMS, fallen, logits_fn, make_batch, make_params, size_of

BATCH = make_batch(PARAMS, n=30)


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

    rows = attacks.evaluate(LOSS, PARAMS, BATCH, {"far": too_far}, [0.01])
    assert fallen(PARAMS, too_far(0.01)(LOSS, PARAMS, BATCH)).sum() > fallen(PARAMS, BATCH).sum()
    assert rows[1].accuracy == rows[0].accuracy


def test_warns_of_zero_gradients():
    dead = losses.cross_entropy(lambda params, x: jax.lax.stop_gradient(logits_fn(params, x)))
    with pytest.warns(UserWarning, match="The gradient of 29 of 29 rightly classified examples is zero"):
        attacks.evaluate(dead, PARAMS, BATCH, {"fgsm": attacks.fgsm}, [0.1])


def test_warns_of_a_network_that_is_not_deterministic():
    noise = np.random.default_rng(0)

    def drawn(rate):
        return noise.normal(size=np.shape(rate)).astype(np.float32)

    def noisy(params, x):
        rate = jax.lax.stop_gradient(x[0, 0, 0])
        draw = jax.pure_callback(drawn, jax.ShapeDtypeStruct((), jnp.float32), rate, vmap_method="sequential")
        return logits_fn(params, x) * (1 + 1e-3 * draw)

    with pytest.warns(UserWarning, match="it is not deterministic"):
        attacks.evaluate(losses.cross_entropy(noisy), PARAMS, BATCH, {}, [])


def test_is_silent_about_a_sound_network():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attacks.evaluate(LOSS, PARAMS, BATCH, {}, [])


@pytest.mark.parametrize(
    ("loss_fn", "options", "message"),
    [
        (lambda params, batch: 0.0, {}, "evaluate needs the logits"),
        (losses.margin(logits_fn, targeted=True), {}, "evaluate counts labels, got a loss with targeted=True"),
        (LOSS, {"epsilons": [-1.0]}, "`epsilon` must be finite and at least 0, got -1"),
        (LOSS, {"norm": "l3"}, "`norm` must be one of"),
        (LOSS, {"attacks": {"clean": attacks.fgsm}}, "Every attack needs a name of its own"),
        (LOSS, {"minimal": {"fgsm": attacks.deepfool()}}, "Every attack needs a name of its own"),
        (LOSS, {"bounds": (0.4, 0.6)}, "outside `bounds`"),
    ],
)
def test_refuses(loss_fn, options, message):
    arguments = {"attacks": {"fgsm": attacks.fgsm}, "epsilons": [0.1], **options}
    with pytest.raises(ValueError, match=message):
        attacks.evaluate(loss_fn, PARAMS, BATCH, **arguments)


def test_transfer_makes_the_examples_on_the_source():
    other = make_params(1)
    make = {"pgd": lambda epsilon: attacks.pgd(epsilon, steps=5)}
    rows = attacks.evaluate(LOSS, PARAMS, BATCH, make, [0.2], KEY, source=(LOSS, other))
    made = attacks.pgd(0.2, steps=5)(LOSS, other, BATCH, jax.random.fold_in(KEY, 0))
    want = ~fallen(PARAMS, BATCH) & ~fallen(PARAMS, made)
    np.testing.assert_array_equal(rows[1].withstood, want)
