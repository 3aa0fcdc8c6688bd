"""The published rule beside this library's, on the same eigenvalues: they agree until a quirk shows.

The reference is written out here from the description of the published code's behaviour (its licence allows no
copy), one epoch a call.
"""

import functools
import math
import pathlib

import jax
import numpy as np
import pytest

from experiments import table
from hessabs.batch_size import Observation, absa, plan, with_decay

pytestmark = pytest.mark.sampled

EPOCH, EPOCHS = 1280, 24


@functools.cache
def made(compatibility, **options):
    """The rule of either code, with the decays and the end of adversarial examples that `described` has."""
    rule = absa(
        128, 128 * 16, measure_every=EPOCH, adversarial_until=12 * EPOCH, compatibility=compatibility, **options
    )
    rule = with_decay(rule, (8 * EPOCH, 16 * EPOCH), 0.2)
    return rule._replace(update=jax.jit(rule.update))


def described(eigenvalues, most=16, ratio=2.0, patience=10):
    """(batch factor, learning-rate factor, adversarial fraction) after each epoch."""
    factor, lr, gamma, reference, duration, active = 1, 1.0, 0.2, None, 0, most > 1
    for epoch, eigenvalue in enumerate(eigenvalues, start=1):
        grow = False
        if active:
            duration += 1
            if reference is None:
                reference = eigenvalue
            elif eigenvalue <= reference / ratio:
                reference, grow = eigenvalue, True
        if grow or duration >= patience:
            before = factor
            factor, gamma, duration = int(factor * ratio), gamma / ratio, 0
            if factor >= most:
                factor, gamma, active = most, 0.0, False
            lr *= factor / before
        if epoch in (8, 16):
            lr *= 0.2
        if epoch >= 12:
            gamma = 0.0
        yield factor, lr, gamma


def followed(controller, eigenvalues):
    state = controller.init()
    for epoch, eigenvalue in enumerate(eigenvalues, start=1):
        if epoch * EPOCH >= int(state.observe_at):
            state = controller.update(Observation(np.int32(epoch * EPOCH), np.float32(eigenvalue)), state)
        yield int(state.batch_size) // 128, float(state.lr_scale), float(state.adversarial_fraction)


def factors(compatibility, eigenvalues, **options):
    return [factor for factor, *_ in followed(made(compatibility, **options), eigenvalues)]


STEADY = [9.0, 7.0, 6.1, 4.4, 4.0, 3.9, 3.1, 2.3, 2.0, 1.9, 1.6, 1.4] + [1.5] * 12
SEQUENCES = {
    "steady": STEADY,
    "patience": [5.0] * EPOCHS,
    "negative": [9.0, 7.0, -8.0, 7.0, 6.0, 5.0] + [5.0] * 18,
    "first_nan": [math.nan, *STEADY[:-1]],
    "zero": [9.0, 0.0, 7.0, 4.0] + [4.0] * 20,
}


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("patience", [3, 10])
def test_compatibility_is_the_published_rule(name, patience):
    eigenvalues = SEQUENCES[name]
    got = list(followed(made("hessianflow", patience=patience), eigenvalues))
    np.testing.assert_allclose(got, list(described(eigenvalues, patience=patience)), rtol=1e-6)


def test_compatibility_with_a_ratio_that_rounds_to_nothing():
    # int(1 * 1.5) is 1: the published rule counts that as a growth, halves the fraction and stays for ever.
    ratios = {"eigenvalue_decrease": 1.5, "growth_factor": 1.5, "fraction_decrease": 1.5}
    got = list(followed(made("hessianflow", **ratios), STEADY))
    np.testing.assert_allclose(got, list(described(STEADY, ratio=1.5)), rtol=1e-6)
    assert got[-1][0] == 1
    assert factors(None, STEADY, **ratios)[-1] > 1


@pytest.mark.parametrize("name", ["steady", "patience"])
def test_on_positive_eigenvalues_the_rules_are_one(name):
    assert factors("hessianflow", SEQUENCES[name]) == factors(None, SEQUENCES[name])


def test_where_they_part():
    # A dominant negative eigenvalue counts as a fall, and as a reference that nothing positive can halve.
    assert factors("hessianflow", SEQUENCES["negative"])[2:6] == [2, 2, 2, 2]
    assert factors(None, SEQUENCES["negative"])[2:6] == [1, 1, 1, 1]
    # A first NaN is the reference for ever: only the patience grows.
    assert factors("hessianflow", SEQUENCES["first_nan"])[:11] == [1] * 9 + [2, 2]
    assert factors(None, SEQUENCES["first_nan"])[5] == 2
    # Zero, which a dead network measures, counts as a fall too.
    assert factors("hessianflow", SEQUENCES["zero"])[1:4] == [2, 2, 2]
    assert factors(None, SEQUENCES["zero"])[1:4] == [1, 1, 2]


RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results"
RECORDED = table.read(RESULTS / "fashion_mnist_mlp")["absa_4096/seed0"]


@pytest.fixture(scope="module")
def recorded():
    """A real run: its eigenvalues by epoch until the largest batch, and its records by epoch."""
    records = RECORDED.records
    return [r["eigenvalue"] for r in records if r["eigenvalue"] is not None], records


def replay(eigenvalues, compatibility=None):
    setting = RECORDED.summary
    epoch = setting["measure_every"]
    rule = absa(
        128,
        setting["max_batch_size"],
        measure_every=epoch,
        adversarial_fraction=setting["adversarial_fraction"],
        adversarial_until=setting["adversarial_epochs"] * epoch,
        compatibility=compatibility,
    )
    rule = with_decay(rule, [point * epoch for point in setting["lr_decay_epochs"]])

    def observe(samples, count):
        value = eigenvalues[count] if count < len(eigenvalues) else 3.0
        return Observation(np.int32(samples), np.float32(value))

    return plan(rule, num_examples=60_000, epochs=setting["epochs"], whole_updates=True, observe=observe)


def test_a_recorded_run_is_replayed_to_the_update_by_both_rules(recorded):
    eigenvalues, records = recorded
    for compatibility in (None, "hessianflow"):
        got = replay(eigenvalues, compatibility)
        assert [row.batch_size for row in got.epochs] == [r["batch_size"] for r in records]
        # The records stand at the ends of epochs; a plan completes the update at hand first.
        ended = [row.updates - (row.samples > r["samples"]) for row, r in zip(got.epochs, records, strict=True)]
        assert ended == [r["updates"] for r in records]
        assert got.updates == records[-1]["updates"]
        np.testing.assert_allclose(
            [0.1 * row.lr_scale for row in got.epochs], [r["lr"] for r in records], rtol=1e-6
        )
        np.testing.assert_allclose(
            [row.adversarial_fraction for row in got.epochs],
            [r["adversarial_fraction"] for r in records],
            rtol=1e-6,
        )


def test_one_negative_eigenvalue_in_the_recorded_run_parts_the_rules(recorded):
    eigenvalues, _ = recorded
    spoiled = [*eigenvalues[:2], -eigenvalues[2], *eigenvalues[3:]]
    ours, published = replay(spoiled), replay(spoiled, "hessianflow")
    # Ours waits for the fall of epoch 6; the published rule grows at once, and from then on by patience alone.
    assert [row.batch_size for row in ours.epochs][2:8] == [128] * 4 + [256] * 2
    assert [row.batch_size for row in published.epochs][2:14] == [128] + [256] * 10 + [512]
    assert published.updates != ours.updates
