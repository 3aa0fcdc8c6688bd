"""A training step: k micro-batches and one update equal one update of the whole batch, worked out by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs.curvature import last_layer_path
from hessabs.data import micro_batches
from hessabs.models import mlp
from hessabs.training import tasks
from hessabs.training.measure import make_measure
from hessabs.training.objectives import make_inner, mixing
from hessabs.training.optimizers import OptimizerSettings, make_optimizer
from hessabs.training.step import init_state, jit_functions, make_functions, read_loss
from hessabs.training.tasks.common import scale_images

RTOL = 1e-5  # sums of float32 in another order
ATOL = 2e-7
BF16_ATOL = 2e-2  # of gradients of order 1: bfloat16 has 8 bits
CLASSES, SHAPE, MICRO = 3, (2, 2, 1), 8
EPSILON, FRACTION = 0.1, 0.25
LR, MOMENTUM, DECAY, SCALE = 0.1, 0.9, 0.01, 4.0

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]


class Normed(nn.Module):
    """Batch norm on the pixels themselves, so that its statistics are those of the images; then two layers."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x.reshape(x.shape[0], -1))
        x = jnp.tanh(nn.Dense(5)(x))
        return nn.Dense(CLASSES)(x)


def images(n, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 200, (n, *SHAPE)).astype(np.uint8)
    if dtype != np.uint8:
        image = (image / 255).astype(dtype)
    label = rng.integers(0, CLASSES, n).astype(np.int32)
    return {"image": image, "label": label}


def batches(n, size=MICRO, seed=0, keep_remainder=False, **kwargs):
    """The micro-batches of one epoch of n examples."""
    stream = micro_batches(images(n, **kwargs), size, seed=seed, keep_remainder=keep_remainder)
    return [next(stream)[0] for _ in range(-(-n // size) if keep_remainder else n // size)]


class Step:
    """The functions of an update as these tests call them."""

    def __init__(self, functions):
        self.functions = functions

    def update(self, state, parts, lr_scale=1.0, fraction=None):
        return self.functions.finish(state, self.add(state, parts, fraction), lr_scale)

    def add(self, state, parts, fraction=None):
        totals = self.functions.begin(state)
        for number, part in enumerate(parts):
            totals = self.functions.add(state, totals, part, fraction, number)
        return totals

    def gradient(self, state, parts, fraction=None):
        totals = self.add(state, parts, fraction)
        return optax.tree.scale(1 / totals.weight, totals.gradient)


def make(model, max_fraction=FRACTION, params_dtype=None, **settings):
    task = tasks.linen(model, (images(4), images(4)))
    optimizer = make_optimizer(
        OptimizerSettings(**{"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, **settings}),
        batch_size=MICRO,
    )
    functions, _ = make_functions(task, optimizer, mixing(make_inner("fgsm", EPSILON), max_fraction))

    def init():
        drawn = task
        if params_dtype is not None:
            drawn = task._replace(init=lambda key: (optax.tree.cast(task.init(key)[0], params_dtype), {}))
        return init_state(drawn, optimizer, jax.random.key(0), (), average=False)

    return Step(jit_functions(functions, MICRO, one_by_one=True)), init


def forward(params, x):
    """The perceptron with one hidden layer, by hand."""
    x = x.reshape(x.shape[0], -1)
    x = jnp.maximum(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], 0)
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def normed(params, stats, x):
    """``Normed`` with given statistics (mean, variance), by hand."""
    x = x.reshape(x.shape[0], -1)
    norm = params["BatchNorm_0"]
    x = (x - stats[0]) / jnp.sqrt(stats[1] + 1e-5) * norm["scale"] + norm["bias"]
    x = jnp.tanh(x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"])
    return x @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]


def mean_nll(logits, label):
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(label)), label])


def sign_step(loss, x):
    """FGSM by hand."""
    return jnp.clip(x + EPSILON * jnp.sign(jax.grad(loss)(x)), 0, 1)


def whole(parts):
    """All real examples of micro-batches, as one batch of images in [0, 1]."""
    real = np.concatenate([part["weight"] for part in parts]) > 0
    image = np.concatenate([part["image"] for part in parts])[real]
    label = np.concatenate([part["label"] for part in parts])[real]
    return jnp.asarray(image / 255, jnp.float32) if image.dtype == np.uint8 else jnp.asarray(image), label


def sgd(params, gradient, buffer, lr):
    """One step of SGD with momentum and weight decay: (params, buffer)."""
    buffer = jax.tree.map(lambda b, g, p: MOMENTUM * b + g + DECAY * p, buffer, gradient, params)
    return jax.tree.map(lambda p, b: p - lr * b, params, buffer), buffer


def assert_close(got, want, rtol=RTOL, atol=ATOL):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=atol), got, want)


@pytest.fixture(scope="module")
def plain():
    return make(mlp(CLASSES, (7,)))


@pytest.fixture(scope="module")
def batch_norm():
    return make(Normed())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_accumulation_is_one_update_of_the_whole_batch(plain, k):
    step, init = plain
    state = init()
    params, buffer = state.params, optax.tree.zeros_like(state.params)
    params = jax.tree.map(np.asarray, params)  # the state is donated
    for update in range(2):
        parts = batches(k * MICRO, seed=update)
        image, label = whole(parts)
        assert len(label) == k * MICRO
        gradient = jax.grad(lambda p, x=image, y=label: mean_nll(forward(p, x), y))(params)
        params, buffer = sgd(params, gradient, buffer, LR * SCALE)
        assert int(state.updates) == update
        totals = step.add(state, parts)
        assert_close(optax.tree.scale(1 / (k * MICRO), totals.gradient), gradient)
        assert (float(totals.weight), float(totals.examples)) == (k * MICRO, k * MICRO)
        state = step.functions.finish(state, totals, SCALE)
        assert int(state.updates) == update + 1
        assert_close(state.params, params)


@pytest.mark.parametrize("n", [17, 23])
def test_weights_are_exact_with_a_partial_last_micro_batch(plain, n):
    step, init = plain
    parts = batches(n, keep_remainder=True)
    assert parts[-1]["weight"].sum() == n % MICRO
    state = init()
    params = jax.tree.map(np.asarray, state.params)
    image, label = whole(parts)
    assert len(label) == n
    loss, gradient = jax.value_and_grad(lambda p: mean_nll(forward(p, image), label))(params)
    want, _ = sgd(params, gradient, optax.tree.zeros_like(params), LR)
    state = step.update(state, parts)
    assert float(state.loss_weight) == n
    assert_close(state.params, want)
    mean, state = read_loss(state)
    assert mean == pytest.approx(float(loss), rel=RTOL)
    assert np.isnan(read_loss(state)[0])


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.25])
def test_adversarial_accumulation_is_the_gradient_of_the_mixed_batch(plain, fraction):
    step, init = plain
    m = int(fraction * MICRO)
    state = init()
    params = jax.tree.map(np.asarray, state.params)
    parts = batches(3 * MICRO, seed=4)
    mixed = []
    for part in parts:
        image, label = whole([part])
        attacked = sign_step(lambda x, y=label: mean_nll(forward(params, x), y), image)
        mixed.append((jnp.concatenate([attacked[:m], image[m:]]), label))
    x, y = (jnp.concatenate(items) for items in zip(*mixed, strict=True))
    gradient = jax.grad(lambda p: mean_nll(forward(p, x), y))(params)
    assert_close(step.gradient(state, parts, fraction), gradient)
    if m:
        clean, _ = whole(parts)
        other = jax.grad(lambda p: mean_nll(forward(p, clean), y))(params)
        assert optax.tree.norm(optax.tree.sub(other, gradient)) > 1e-3  # the test tells them apart


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_scaled_on_the_device(dtype):
    batch = images(4, dtype=dtype)
    got = scale_images(jax.device_put(batch))["image"]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, images(4)["image"] / 255, rtol=1e-6)


@pytest.mark.slow
def test_batch_norm_takes_the_statistics_of_each_micro_batch(batch_norm):
    step, init = batch_norm
    state = init()
    params = jax.tree.map(np.asarray, state.params)
    parts = batches(3 * MICRO, seed=1)
    mean, variance = np.zeros(4), np.ones(4)
    gradients = []
    for part in parts:
        image, label = whole([part])
        flat = np.asarray(image, np.float64).reshape(MICRO, -1)

        def loss(p, x=image, y=label):
            # The statistics depend on the params through nothing: batch norm sees only the images.
            own = x.reshape(MICRO, -1)
            return mean_nll(normed(p, (own.mean(0), own.var(0)), x), y)

        gradients.append(jax.grad(loss)(params))
        mean, variance = 0.9 * mean + 0.1 * flat.mean(0), 0.9 * variance + 0.1 * flat.var(0)
    want = jax.tree.map(lambda *g: sum(g) / 3, *gradients)
    assert_close(step.gradient(state, parts), want, atol=1e-6)
    state = step.update(state, parts, 2.0)
    assert_close(state.model_state["batch_stats"]["BatchNorm_0"], {"mean": mean, "var": variance})


@pytest.mark.slow
def test_several_micro_batches_in_one_call_are_seen_one_after_the_other(batch_norm):
    step, init = batch_norm
    parts = batches(4 * MICRO, seed=1)
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    for fraction in (None, 0.25):
        one, other = (step.update(init(), given, 1.5, fraction) for given in (parts, [joined]))
        assert_close(other, one)
        assert any(
            np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (one.params, init().params)), strict=True)
        )


@pytest.mark.slow
def test_attacks_use_the_running_statistics_and_do_not_touch_them(batch_norm):
    step, init = batch_norm
    state = step.update(init(), batches(2 * MICRO, seed=2))
    params, old = jax.tree.map(np.asarray, (state.params, state.model_state["batch_stats"]["BatchNorm_0"]))
    [part] = batches(MICRO, seed=3)
    image, label = whole([part])
    m = int(FRACTION * MICRO)
    running = (old["mean"], old["var"])
    attacked = sign_step(lambda x: mean_nll(normed(params, running, x), label), image)
    mixed = jnp.concatenate([attacked[:m], image[m:]]).reshape(MICRO, -1)
    totals = step.add(state, [part], FRACTION)
    # One training pass, over the mixed batch: the attack's own passes leave no trace.
    want = {
        "mean": 0.9 * old["mean"] + 0.1 * np.mean(mixed, 0),
        "var": 0.9 * old["var"] + 0.1 * np.var(mixed, 0),
    }
    assert_close(totals.model_state["batch_stats"]["BatchNorm_0"], want)

    def loss(p):
        return mean_nll(normed(p, (mixed.mean(0), mixed.var(0)), mixed), label)

    assert_close(optax.tree.scale(1 / MICRO, totals.gradient), jax.grad(loss)(params), atol=1e-6)


@pytest.mark.slow
def test_the_eigenvalue_is_measured_in_evaluation_mode_and_touches_nothing(batch_norm):
    step, init = batch_norm
    state = step.update(init(), batches(4 * MICRO, seed=5))
    before = jax.tree.map(np.array, state)
    [part] = batches(2 * MICRO, size=2 * MICRO, seed=6)
    v0 = optax.tree.random_like(jax.random.key(1), state.params, jax.random.normal)
    task = tasks.linen(Normed(), (images(4), images(4)))
    measure = make_measure(task, part, max_iters=200, rtol=1e-5)
    result = measure(state.params, state.model_state, v0)
    assert_close(state, before, rtol=0, atol=0)

    image, label = whole([part])
    stats = state.model_state["batch_stats"]["BatchNorm_0"]
    flat, unravel = jax.flatten_util.ravel_pytree(state.params)

    def loss(p):
        return mean_nll(normed(unravel(p), (stats["mean"], stats["var"]), image), label)

    dense = np.asarray(jax.hessian(loss)(flat))
    assert float(result.eigenvalue) == pytest.approx(largest_of(dense), rel=1e-3)

    block = last_layer_path(state.params, CLASSES)
    inside = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full(x.shape, block in jax.tree_util.keystr(path)), state.params
    )
    chosen = np.asarray(jax.flatten_util.ravel_pytree(inside)[0])
    assert 0 < chosen.sum() < chosen.size
    result = measure(state.params, state.model_state, v0, block)
    assert float(result.eigenvalue) == pytest.approx(largest_of(dense[chosen][:, chosen]), rel=1e-3)
    vector, start = (np.asarray(jax.flatten_util.ravel_pytree(x)[0]) for x in (result.eigenvector, v0))
    np.testing.assert_array_equal(vector[~chosen], start[~chosen])


def has_moved(state, before):
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(before.params), strict=True)
    return any(np.any(a != b) for a, b in pairs)


def largest_of(matrix):
    values = np.linalg.eigvalsh(matrix)
    return values[np.argmax(np.abs(values))]


@pytest.mark.parametrize("model", [mlp(CLASSES, (7,)), Normed()], ids=["mlp", "batch_norm"])
def test_one_compilation_each_whatever_changes(model):
    step, init = make(model)
    assert set(step.functions.compilations().values()) == {0}
    state = init()
    for k, lr_scale, fraction in ((1, 1.0, 0.25), (2, 2.0, 0.125), (4, 0.8, 0.0625), (1, 1.6, 0.0)):
        state = step.update(state, batches(k * MICRO), lr_scale)
        state = step.update(state, batches(k * MICRO, seed=1), lr_scale, fraction)
        state = step.functions.whole(state, batches(MICRO)[0], None, lr_scale)
        state = step.functions.whole(state, batches(MICRO, seed=1)[0], fraction, lr_scale)
        _, state = read_loss(state)
    # With and without adversarial examples.
    assert step.functions.compilations() == {"begin": 1, "add": 2, "finish": 1, "whole": 2}


@pytest.mark.parametrize("model", ["plain", "batch_norm"])
def test_an_update_of_one_micro_batch_is_that_of_one_part(model, request):
    step, init = request.getfixturevalue(model)
    [batch] = batches(MICRO)
    for fraction in (None, 0.25):
        one = step.functions.whole(init(), batch, fraction, 1.5)
        parts = step.update(init(), [batch], 1.5, fraction)
        assert any(
            np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (one.params, init().params)), strict=True)
        )
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("fraction", [None, 0.25])
def test_nonfinite_update_names_the_first(plain, fraction):
    step, init = plain
    good = batches(MICRO, dtype=np.float32)[0]
    bad = {**good, "image": np.where(np.arange(MICRO)[:, None, None, None] == 7, np.nan, good["image"])}
    state, found = init(), []
    for update in range(1, 5):
        parts = [bad if (update, micro) in ((3, 1), (4, 0)) else good for micro in range(2)]
        state = step.update(state, parts, 1.0, fraction)
        found.append(int(state.nonfinite_update))
    assert found == [0, 0, 3, 3]


@pytest.mark.slow
def test_a_network_in_bfloat16():
    step, init = make(mlp(CLASSES, (7,), dtype=jnp.bfloat16))
    state = init()
    params = jax.tree.map(np.asarray, state.params)
    parts = batches(2 * MICRO)
    image, label = whole(parts)
    gradient = jax.grad(lambda p: mean_nll(forward(p, image), label))(params)
    got = step.gradient(state, parts)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype("float32")}
    assert_close(got, gradient, rtol=0, atol=BF16_ATOL)


@pytest.mark.slow
def test_params_in_bfloat16_keep_their_dtype_and_compile_once():
    step, init = make(mlp(CLASSES, (7,)), params_dtype=jnp.bfloat16, weight_decay=0.0)
    state = init()
    want = jax.tree.map(np.asarray, optax.tree.cast(state.params, jnp.float32))
    parts = batches(2 * MICRO)
    image, label = whole(parts)
    gradient = jax.grad(lambda p: mean_nll(forward(p, image), label))(want)
    want = jax.tree.map(lambda p, g: p - LR * g, want, gradient)
    state = step.update(state, parts)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert_close(optax.tree.cast(state.params, jnp.float32), want, rtol=2**-7, atol=BF16_ATOL * LR)
    state = step.update(state, parts)
    compiled = step.functions.compilations()
    assert (compiled["add"], compiled["finish"]) == (1, 1)


@pytest.mark.slow
def test_the_average_of_the_params_goes_by_examples():
    task = tasks.linen(mlp(CLASSES, (7,)), (images(4), images(4)))
    optimizer = make_optimizer(OptimizerSettings(lr=LR), batch_size=MICRO)
    functions, _ = make_functions(task, optimizer, mixing(make_inner("fgsm", EPSILON), 0.25), half_life=20.0)
    step = Step(jit_functions(functions, MICRO, one_by_one=True))
    state = init_state(task, optimizer, jax.random.key(0), (), average=True)
    want = jax.tree.map(np.array, state.params)
    for k in (1, 3):
        state = step.update(state, batches(k * MICRO, seed=k))
        kept = 0.5 ** (k * MICRO / 20)
        want = jax.tree.map(lambda a, p, kept=kept: kept * a + (1 - kept) * np.asarray(p), want, state.params)
        assert_close(state.average, want)
