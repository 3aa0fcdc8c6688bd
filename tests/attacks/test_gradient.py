"""FGSM against closed forms: one step of the stated size up the gradient, nothing else changed."""

from collections import OrderedDict, defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.attacks import fgsm
from tests.attacks import optima

pytestmark = pytest.mark.sampled

ROUNDING = 2e-7  # of one float32 addition of numbers in [0, 1]
RTOL = 2e-5  # a logistic gradient in float32 against NumPy in float64
BF16 = 2**-8  # half the spacing of bfloat16 just below 1, and a little

NORMS = ("linf", "l2")


class Pair(NamedTuple):
    image: jax.Array
    label: jax.Array


def linear_loss(w, batch):
    return jnp.mean(batch["image"].reshape(len(batch["label"]), -1) @ w)


def logistic_loss(w, batch):
    margin = (batch["image"] @ w) * (2 * batch["label"] - 1)
    return jnp.mean(jnp.log1p(jnp.exp(-margin)))


def logistic_input_gradient(w, image, label):
    """Closed form of each example's gradient, in float64."""
    w, image = np.asarray(w, np.float64), np.asarray(image, np.float64)
    sign = 2.0 * np.asarray(label) - 1
    return (-sign / (1 + np.exp(sign * (image @ w))))[:, None] * w


def problem(n=6, d=5, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    batch = {
        "image": jnp.asarray(rng.uniform(0.2, 0.8, (n, d)), dtype),
        "label": jnp.asarray(rng.integers(0, 2, n), jnp.int32),
    }
    return jnp.asarray(rng.normal(size=d), dtype), batch


def size_of(step, norm):
    flat = np.asarray(step, np.float64).reshape(len(step), -1)
    return np.abs(flat).max(1) if norm == "linf" else np.linalg.norm(flat, axis=1)


def expected(gradient, image, epsilon, norm, bounds):
    return np.array(
        [optima.farthest(g, x, epsilon, norm, bounds) for g, x in zip(gradient, image, strict=True)]
    )


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0), (0.2, 0.8)])
@pytest.mark.parametrize("epsilon", [0.005, 0.5])
@pytest.mark.parametrize("norm", NORMS)
def test_linear_loss(norm, epsilon, bounds):
    w, batch = problem()
    got = fgsm(epsilon, norm=norm, bounds=bounds)(linear_loss, w, batch)["image"]
    gradient = np.tile(np.asarray(w, np.float64), (len(got), 1))
    np.testing.assert_allclose(
        got, expected(gradient, batch["image"], epsilon, norm, bounds), atol=2 * ROUNDING, rtol=0
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("n", [1, 6])
def test_nonlinear_loss_per_example(norm, n):
    w, batch = problem(n, seed=n)
    got = fgsm(0.1, norm=norm, bounds=None)(logistic_loss, w, batch)["image"]
    gradient = logistic_input_gradient(w, **batch)
    np.testing.assert_allclose(got, expected(gradient, batch["image"], 0.1, norm, None), rtol=RTOL)


@pytest.mark.parametrize("norm", NORMS)
def test_size_is_epsilon_and_the_loss_rises(norm):
    w, batch = problem()
    adversarial = fgsm(0.05, norm=norm, bounds=None)(logistic_loss, w, batch)
    step = np.asarray(adversarial["image"]) - np.asarray(batch["image"])
    np.testing.assert_allclose(size_of(step, norm), 0.05, atol=2 * ROUNDING)
    assert logistic_loss(w, adversarial) > logistic_loss(w, batch)


@pytest.mark.parametrize("shape", [(2, 2, 3)])
@pytest.mark.parametrize("norm", NORMS)
def test_images_of_any_rank(norm, shape):
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.uniform(0.3, 0.7, (3, *shape)), jnp.float32)
    w = jnp.asarray(rng.normal(size=np.prod(shape)), jnp.float32)
    got = fgsm(0.1, norm=norm)(linear_loss, w, {"image": image, "label": jnp.zeros(3)})["image"]
    assert got.shape == image.shape
    np.testing.assert_allclose(size_of(np.asarray(got - image), norm), 0.1, atol=2 * ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_hold_at_the_border(norm):
    image = jnp.array([[0.0, 1.0], [0.99, 0.01]])
    w = jnp.array([-1.0, 1.0])  # pushes the first example out on both sides
    got = fgsm(0.3, norm=norm)(linear_loss, w, {"image": image, "label": jnp.zeros(2)})["image"]
    assert got.min() >= 0
    assert got.max() <= 1
    np.testing.assert_array_equal(got[0], image[0])


@pytest.mark.parametrize("norm", NORMS)
def test_epsilon_zero_is_the_identity(norm):
    w, batch = problem()
    got = fgsm(0.0, norm=norm)(logistic_loss, w, batch)["image"]
    np.testing.assert_array_equal(got, batch["image"])


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_changes_nothing(norm):
    w, batch = problem()
    got = fgsm(0.1, norm=norm)(linear_loss, jnp.zeros_like(w), batch)["image"]
    np.testing.assert_array_equal(got, batch["image"])


@pytest.mark.parametrize("norm", NORMS)
def test_one_example_without_gradient_among_others(norm):
    w, batch = problem()
    batch["weight"] = jnp.ones(6).at[2].set(0.0)

    def loss(w, batch):
        return jnp.mean((batch["image"] @ w) * batch["weight"])

    step = np.asarray(fgsm(0.1, norm=norm)(loss, w, batch)["image"] - batch["image"])
    np.testing.assert_array_equal(step[2], 0)
    np.testing.assert_allclose(size_of(np.delete(step, 2, 0), norm), 0.1, atol=2 * ROUNDING)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("norm", NORMS)
def test_scale_of_the_loss_does_not_matter(norm, scale):
    # The square of a gradient of 1e-30 underflows in float32, that of 1e30 overflows.
    w, batch = problem()
    got = fgsm(0.1, norm=norm)(lambda w, b: scale * linear_loss(w, b), w, batch)["image"]
    want = fgsm(0.1, norm=norm)(linear_loss, w, batch)["image"]
    np.testing.assert_allclose(got, want, atol=2 * ROUNDING)


@pytest.mark.parametrize("norm", NORMS)
def test_each_example_is_attacked_for_itself(norm):
    w, batch = problem()
    attack = fgsm(0.1, norm=norm)
    whole = np.asarray(attack(logistic_loss, w, batch)["image"])
    _, other = problem(seed=1)
    for i in (0, 5):
        mixed = {name: np.where(np.arange(6).reshape(6, *[1] * (x.ndim - 1)) == i, x, other[name])
                 for name, x in batch.items()}  # fmt: skip
        got = attack(logistic_loss, w, jax.tree.map(jnp.asarray, mixed))["image"]
        np.testing.assert_allclose(got[i], whole[i], atol=2 * ROUNDING)
        assert not np.allclose(got[3], whole[3], atol=1e-3)


def test_other_leaves_are_the_same_objects():
    w, batch = problem()
    batch["weight"] = jnp.arange(6.0)
    before = dict(batch)
    got = fgsm(0.1)(logistic_loss, w, batch)
    assert got["label"] is batch["label"]
    assert got["weight"] is batch["weight"]
    assert set(got) == set(batch)
    assert batch["image"] is before["image"]  # the caller's batch is not written to


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda x, y: {"pixels": x, "y": y}, "pixels"),
        (lambda x, y: OrderedDict(pixels=x, y=y), "pixels"),
        (lambda x, y: defaultdict(list, pixels=x, y=y), "pixels"),
        (lambda x, y: (x, y), 0),
        (lambda x, y: (y, x), -1),
        (lambda x, y: [y, x], 1),
        (Pair, "image"),
        (Pair, 0),
    ],
)
def test_kinds_of_batches(make, key):
    w, batch = problem()
    other = make(batch["image"], batch["label"])

    def loss(w, b):
        by_name = isinstance(b, dict) or isinstance(key, int)
        return linear_loss(w, {"image": b[key] if by_name else getattr(b, key), "label": batch["label"]})

    got = fgsm(0.1, inputs_key=key)(loss, w, other)
    assert type(got) is type(other)
    assert jax.tree.structure(got) == jax.tree.structure(other)
    want = make(fgsm(0.1)(linear_loss, w, batch)["image"], batch["label"])
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("norm", NORMS)
def test_bfloat16_is_kept(norm):
    w, batch = problem(dtype=jnp.bfloat16)
    got = fgsm(0.1, norm=norm)(logistic_loss, w, batch)["image"]
    assert got.dtype == jnp.bfloat16
    gradient = logistic_input_gradient(w, **batch)
    want = expected(gradient, batch["image"], 0.1, norm, (0.0, 1.0))
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=BF16)


def test_float64_is_kept():
    with jax.enable_x64(True):
        w, batch = problem(dtype=jnp.float64)
        got = fgsm(0.1, norm="l2")(logistic_loss, w, batch)["image"]
        assert got.dtype == jnp.float64
        gradient = logistic_input_gradient(w, **batch)
        want = expected(gradient, batch["image"], 0.1, "l2", (0.0, 1.0))
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_jit_traces_once():
    w, batch = problem()
    traces = []

    def loss(w, batch):
        traces.append(1)
        return logistic_loss(w, batch)

    attack = fgsm(0.1, norm="l2")
    jitted = jax.jit(lambda w, batch: attack(loss, w, batch))
    for scale in (1.0, 2.0, -3.0):
        got = jitted(scale * w, batch)["image"]
        want = attack(logistic_loss, scale * w, batch)["image"]
        np.testing.assert_allclose(got, want, atol=2 * ROUNDING)
    assert len(traces) == 1


@pytest.mark.parametrize("norm", NORMS)
def test_vmap_over_params_and_batches(norm):
    problems = [problem(seed=seed) for seed in range(3)]
    stacked_w, stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *problems)
    attack = fgsm(0.1, norm=norm)
    got = jax.jit(jax.vmap(lambda w, b: attack(logistic_loss, w, b)))(stacked_w, stacked)["image"]
    for i, (w, batch) in enumerate(problems):
        np.testing.assert_allclose(got[i], attack(logistic_loss, w, batch)["image"], atol=2 * ROUNDING)


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_refuses_epsilon(epsilon):
    with pytest.raises(ValueError, match=rf"`epsilon` must be at least 0 and finite, got {epsilon}"):
        fgsm(epsilon)


def test_refuses_norm():
    with pytest.raises(ValueError, match=r"`norm` must be one of \['linf', 'l2'\], got 'l1'"):
        fgsm(0.1, norm="l1")


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.5, 0.5), (float("nan"), 1.0)])
def test_refuses_bounds(bounds):
    with pytest.raises(ValueError, match=r"`bounds` must be \(lowest, highest\), got \("):
        fgsm(0.1, bounds=bounds)


@pytest.mark.parametrize(
    ("make", "key", "has"),
    [
        (lambda x: {"pixels": x}, "image", r"the keys \['pixels'\]"),
        (lambda x: Pair(x, x), "x", r"the fields \['image', 'label'\]"),
        (lambda x: (x, x), 2, "2 items"),
        (lambda x: [x], "image", "1 items"),
        (lambda x: x, "image", "the type ArrayImpl"),
    ],
)
def test_refuses_a_batch_without_the_inputs(make, key, has):
    message = rf"inputs at key {key!r}, but the batch has {has}; pass `inputs_key`"
    with pytest.raises(ValueError, match=message):
        fgsm(0.1, inputs_key=key)(linear_loss, jnp.ones(2), make(jnp.ones((3, 2))))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32])
def test_refuses_integer_images(dtype):
    batch = {"image": jnp.ones((3, 2), dtype), "label": jnp.zeros(3)}
    with pytest.raises(ValueError, match=rf"must be floating-point .*got {jnp.dtype(dtype).name}; scale"):
        fgsm(0.1)(linear_loss, jnp.ones(2), batch)


@pytest.mark.parametrize("norm", NORMS)
def test_inputs_outside_the_bounds_are_refused_and_get_no_farther_out_where_they_are_traced(norm):
    w, batch = problem()
    attack = fgsm(0.1, norm=norm, bounds=(0.4, 0.6))
    with pytest.raises(ValueError, match=r"outside `bounds` \(0\.4, 0\.6\); pass the bounds of the batch"):
        attack(linear_loss, w, batch)
    got = jax.jit(lambda w, batch: attack(linear_loss, w, batch))(w, batch)["image"]
    gradient = np.tile(np.asarray(w, np.float64), (len(got), 1))
    np.testing.assert_allclose(
        got, expected(gradient, batch["image"], 0.1, norm, (0.4, 0.6)), atol=2 * ROUNDING
    )


@pytest.mark.slow
def test_a_large_batch_moves_what_an_example_alone_moves():
    # The label is ahead by 86: exp(-86) is a float32, a thousandth of it is none.
    def loss(w, batch):
        ahead = batch["image"] @ w
        return jnp.mean(jax.nn.softplus(-ahead))

    weights, image = jnp.array([82.0, 0.0]), jnp.array([[1.05, 0.5]])
    for n in (1, 1000):
        batch = {"image": jnp.tile(image, (n, 1)), "label": jnp.zeros(n, int)}
        got = fgsm(0.1, bounds=None)(loss, weights, batch)["image"]
        np.testing.assert_allclose(got, np.tile([[0.95, 0.5]], (n, 1)), rtol=1e-6)
