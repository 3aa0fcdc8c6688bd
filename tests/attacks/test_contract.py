"""What every attack does, whatever it computes: the invariants of the protocol; most attacks as slow tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hessabs import attacks
from hessabs.attacks import losses
from hessabs.attacks.losses.criteria import take_class
from tests.attacks.cases import (
    CASES,
    FEW,
    KEY,
    LOSS,
    fallen,
    logits_fn,
    make_batch,
    make_params,
    mostly_slow,
    names,
    one_of_each,
    plain_loss,
    size_of,
)

pytestmark = pytest.mark.sampled
SEEDS = st.integers(0, 1000)
PARAMS = make_params()
BALLS = names(lambda case: case.norm)
HARDER = names(lambda case: case.effort)


@pytest.fixture(params=names())
def name(request):
    return request.param


@pytest.fixture(params=BALLS)
def ball(request):
    return request.param


@functools.cache
def make(name, epsilon):
    return CASES[name].make(epsilon)


@FEW
@given(seed=SEEDS, epsilon=st.floats(0.02, 0.6))
@pytest.mark.parametrize("name", BALLS)
def test_perturbation_is_within_epsilon_and_the_bounds(name, seed, epsilon):
    case, batch = CASES[name], make_batch(PARAMS, seed)
    got = case.make(epsilon)(LOSS, PARAMS, batch, jax.random.key(seed))["image"]
    assert size_of(np.float64(got) - np.float64(batch["image"]), case.norm).max() <= epsilon * (1 + 1e-5)
    assert got.min() >= 0
    assert got.max() <= 1


def test_it_moves_within_other_bounds(name):
    batch = make_batch(PARAMS, low=-2.0, high=3.0)
    got = CASES[name].make(0.3, bounds=(-2.0, 3.0))(LOSS, PARAMS, batch, KEY)["image"]
    assert -2 <= got.min() < -1.5
    assert 2.5 < got.max() <= 3
    assert not np.array_equal(got, batch["image"])


@pytest.mark.parametrize("loss_fn", [LOSS, plain_loss], ids=["logits", "plain"])
def test_epsilon_zero_is_the_identity(ball, loss_fn):
    if loss_fn is plain_loss and not CASES[ball].plain:
        pytest.skip("needs the logits")
    batch = make_batch(PARAMS)
    got = make(ball, 0.0)(loss_fn, PARAMS, batch, KEY)
    np.testing.assert_array_equal(got["image"], batch["image"])


@FEW
@given(seed=SEEDS)
@pytest.mark.parametrize("name", names(lambda case: case.norm and case.effort))
def test_loss_rises_and_no_right_answer_comes_back(name, seed):
    batch = make_batch(PARAMS, seed)
    got = make(name, 0.2)(LOSS, PARAMS, batch, KEY)
    assert np.all(fallen(PARAMS, got) >= fallen(PARAMS, batch))
    raised = make(name, 0.2)(plain_loss, PARAMS, batch, KEY)
    before, after = (losses.per_example(LOSS, PARAMS, b, "image")[0] for b in (batch, raised))
    assert np.all(after >= before - 1e-6)


@FEW
@given(seed=SEEDS)
@pytest.mark.parametrize("name", names())
def test_no_example_influences_another(name, seed):
    batch = make_batch(PARAMS, seed)
    other = make_batch(PARAMS, seed + 1)
    mixed = jax.tree.map(lambda x, y: y.at[2].set(x[2]), batch, other)
    attack = make(name, 0.2)
    got, want = (attack(LOSS, PARAMS, b, KEY)["image"] for b in (mixed, batch))
    np.testing.assert_allclose(got[2], want[2], atol=CASES[name].tolerance)


@pytest.mark.parametrize(
    "name", mostly_slow(["pgd-linf", "trust_region-l2", "carlini_wagner"], ["trust_region-l2"])
)
def test_examples_that_leave_change_nothing_for_the_others(name):
    # 48 examples: the loop on the host throws rows out, that on the device only masks them.
    batch = make_batch(PARAMS, 4, n=48)
    attack = make(name, 0.1)
    host = attack(LOSS, PARAMS, batch, KEY)["image"]
    device = jax.jit(attack)(LOSS, PARAMS, batch, KEY)["image"]
    np.testing.assert_allclose(host, device, atol=CASES[name].tolerance)


@pytest.mark.parametrize("name", HARDER)
def test_success_does_not_fall_with_more_effort(name):
    case = CASES[name]
    for seed in range(3):
        batch = make_batch(PARAMS, seed)
        fell = [
            fallen(PARAMS, case.make(0.1, **{case.effort: n})(LOSS, PARAMS, batch, KEY)).sum()
            for n in (1, 4, 16)
        ]
        assert fell == sorted(fell)


@pytest.mark.parametrize("name", mostly_slow(["pgd", "adam_pgd", "apgd"], ["pgd"]))
def test_success_does_not_fall_with_more_restarts(name):
    batch, attack = make_batch(PARAMS, 6), getattr(attacks, name)
    fell = [fallen(PARAMS, attack(0.1, steps=2, restarts=n)(LOSS, PARAMS, batch, KEY)) for n in (1, 6)]
    assert np.all(fell[0] <= fell[1])


def test_labels_and_other_leaves_are_the_same_objects(name):
    batch = make_batch(PARAMS)
    before = dict(batch)
    got = make(name, 0.2)(LOSS, PARAMS, batch, KEY)
    assert set(got) == set(batch)
    for leaf in ("label", "weight", "id"):
        assert got[leaf] is batch[leaf]
    assert batch["image"] is before["image"]
    assert got["image"].dtype == jnp.float32
    assert got["image"].shape == batch["image"].shape


def narrow_logits(statistics, params, inputs):
    normalized = (inputs - statistics["mean"]) / statistics["std"]
    return logits_fn(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), normalized.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", one_of_each(fast=("pgd-linf",)))
def test_bfloat16_network_with_statistics(name):
    attack, results = make(name, 0.2), []
    for mean in (0.0, 0.3):
        statistics = {"mean": jnp.full((2, 3), mean), "std": jnp.ones((2, 3))}
        bound = jax.tree_util.Partial(narrow_logits, statistics)
        batch = make_batch(PARAMS, model=bound)
        results.append(attack(losses.cross_entropy(bound), PARAMS, batch, KEY)["image"])
        np.testing.assert_array_equal(statistics["mean"], jnp.full((2, 3), mean))
        np.testing.assert_array_equal(statistics["std"], jnp.ones((2, 3)))
        assert results[-1].dtype == jnp.float32
        assert np.all(np.isfinite(results[-1]))
        # An input rounded to bfloat16 would survive the round trip.
        assert not np.array_equal(results[-1], results[-1].astype(jnp.bfloat16).astype(jnp.float32))
    assert not np.array_equal(*results)


def test_zero_gradients_give_finite_results(name):
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    batch = make_batch(params)
    got = make(name, 0.2)(LOSS, params, batch, KEY)["image"]
    assert np.all(np.isfinite(got))
    assert got.min() >= 0
    assert got.max() <= 1


def test_tiny_gradients_are_gradients(ball):
    # Saturated: every gradient is below 1e-20, and its square underflows.
    batch = make_batch(PARAMS)
    scaled = losses.from_logits(logits_fn, lambda z, y, t: 1e-25 * take_class(-z, y))
    got = make(ball, 0.2)(scaled, PARAMS, batch, KEY)["image"]
    assert np.all(np.isfinite(got))
    assert not np.array_equal(got, batch["image"])


@pytest.mark.parametrize("name", one_of_each("pgd-l1", fast=("trust_region-l2",)))
def test_jit_and_vmap_trace_once_and_closures_over_tracers_work(name):
    # In float64: conjugate gradients make of float32's rounding what depends on the machine.
    with jax.enable_x64(True):
        traces, attack = [], make(name, 0.2)
        batch = {**make_batch(PARAMS), "image": jnp.asarray(make_batch(PARAMS)["image"], jnp.float64)}

        @jax.jit
        @jax.vmap
        def run(params):
            traces.append(1)
            closed = losses.cross_entropy(lambda unused, x: logits_fn(params, x))  # the loss hides the tracers
            return attack(closed, None, batch, KEY)["image"]

        for seeds in ((0, 1), (2, 3)):
            every = [make_params(seed, jnp.float64) for seed in seeds]
            for got, params in zip(run(jax.tree.map(lambda *x: jnp.stack(x), *every)), every, strict=True):
                want = attack(LOSS, params, batch, KEY)["image"]
                assert want.dtype == jnp.float64
                np.testing.assert_allclose(got, want, atol=CASES[name].tolerance)
    assert len(traces) == 1


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_refuses_epsilon(ball, epsilon):
    with pytest.raises(ValueError, match=rf"^`epsilon` must be at least 0 and finite, got {epsilon}\.$"):
        CASES[ball].make(epsilon)


def test_refuses_inputs_that_are_not_finite(name):
    batch = make_batch(PARAMS)
    batch["image"] = batch["image"].at[0, 0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"^The inputs at key 'image' hold values that are not finite"):
        make(name, 0.2)(LOSS, PARAMS, batch, KEY)


def test_refuses_bounds_that_do_not_contain_the_images(name):
    batch = make_batch(PARAMS)
    batch["image"] = 255 * batch["image"]
    with pytest.raises(ValueError, match=r"lie in \[0, 255\], outside `bounds` \(0\.0, 1\.0\)"):
        make(name, 0.2)(LOSS, PARAMS, batch, KEY)


def test_refuses_a_batch_without_the_inputs(name):
    batch = make_batch(PARAMS)
    del batch["image"]
    with pytest.raises(ValueError, match=r"inputs at key 'image', but the batch has the keys"):
        make(name, 0.2)(LOSS, PARAMS, batch, KEY)


@pytest.mark.parametrize("bad", [-1, 4])
def test_refuses_labels_out_of_range(name, bad):
    batch = make_batch(PARAMS)
    batch["label"] = batch["label"].at[1].set(bad)
    with pytest.raises(
        ValueError, match=r"^The labels must lie in \[0, 3\], one of 4 classes, got values from"
    ):
        make(name, 0.2)(LOSS, PARAMS, batch, KEY)


def test_refuses_a_targeted_attack_without_targets(name):
    if name.startswith(("deepfool", "ensemble")):
        pytest.skip("untargeted; its own test")
    targeted = losses.cross_entropy(logits_fn, targeted=True)
    with pytest.raises(
        ValueError, match=r"the targets of a targeted attack at key 'target', but the batch has"
    ):
        make(name, 0.2)(targeted, PARAMS, make_batch(PARAMS), KEY)


@pytest.mark.parametrize(
    "name",
    mostly_slow(
        ["pgd-linf", "apgd-linf", "trust_region-l2", "carlini_wagner"], ["pgd-linf", "trust_region-l2"]
    ),
)
def test_targeted(name):
    batch = make_batch(PARAMS, 7)
    batch["target"] = (jnp.argmax(logits_fn(PARAMS, batch["image"]), -1) + 2) % 4
    targeted = losses.cross_entropy(logits_fn, targeted=True)
    got = make(name, 0.5)(targeted, PARAMS, batch, KEY)
    assert not fallen(PARAMS, batch, targeted).any()
    assert fallen(PARAMS, got, targeted).any()


def test_refuses_a_loss_without_logits(name):
    if CASES[name].plain:
        pytest.skip("takes any loss")
    with pytest.raises(ValueError, match=r"needs the logits: pass a loss that carries them"):
        make(name, 0.2)(plain_loss, PARAMS, make_batch(PARAMS), KEY)
