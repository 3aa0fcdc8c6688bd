"""Networks: parameter counts, batch norm that follows the micro-batch, compute dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import models
from hessabs.jaxprs import equations
from hessabs.models import MODELS, ResNet, create, layers, mlp, num_params, resnet20

pytestmark = pytest.mark.sampled

OF_IMAGES = sorted(set(MODELS) - set(models.OF_TEXT))


def init(model, shape):
    x = jax.random.uniform(jax.random.key(1), shape)
    return jax.jit(model.init)(jax.random.key(0), x), x


SMALL = ResNet(num_classes=10, blocks=(1, 1, 1))  # as resnet20, and quicker to compile


@functools.cache
def small():
    """(Its variables, eight images)."""
    return init(SMALL, (8, 8, 8, 1))


TRAIN = jax.jit(functools.partial(SMALL.apply, train=True, mutable=["batch_stats"]))
EVALUATE = jax.jit(SMALL.apply)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (mlp(), (28, 28, 1), 269_322),
        (mlp(3, hidden=()), (8, 8, 1), 64 * 3 + 3),
        (models.c1(), (32, 32, 3), 1_756_682),
        (models.c1(20), (32, 32, 3), 1_756_682 + 10 * 193),
        (models.c1_small(), (28, 28, 1), 83_978),
        (models.c2(), (32, 32, 3), 1_148_746),
        (models.resnet18_cifar(), (32, 32, 3), 11_173_962),
        (models.wide_resnet16_4(), (32, 32, 3), 2_748_890),
        (models.squeezenext23(), (32, 32, 3), 588_666),
        (models.alexnet_svhn(), (32, 32, 3), 2_472_266),
        (models.alexnet(1000), (224, 224, 3), 61_100_840),
        (models.resnet50_tiny(200), (64, 64, 3), 23_917_832),
        (models.resnet18(1000), (224, 224, 3), 11_689_512),
        (resnet20(), (32, 32, 3), 272_474),
        (resnet20(100), (32, 32, 3), 272_474 + 65 * 90),
        (resnet20(), (28, 28, 1), 272_474 - 2 * 9 * 16),
    ],
)
def test_parameter_counts(model, shape, expected):
    assert num_params(model, shape) == expected


@pytest.mark.parametrize("name", OF_IMAGES)
def test_dtypes(name):
    x = jnp.zeros((2, 64, 64, 3))
    for dtype in (None, jnp.bfloat16):
        model = MODELS[name](num_classes=7, dtype=dtype)
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
        assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c1_small", "mlp", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_bfloat16_is_close(name):
    variables, x = init(create(name, 7), (2, 8, 8, 1))
    exact = jax.jit(create(name, 7).apply)(variables, x)
    logits = jax.jit(MODELS[name](num_classes=7, dtype=jnp.bfloat16).apply)(variables, x)
    # bfloat16 has 8 bits of precision: a relative error of 2^-8 a layer, 21 layers.
    np.testing.assert_allclose(logits, exact, atol=0.1 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_bfloat16_is_what_is_computed_in(name):
    model, x = MODELS[name](num_classes=7, dtype=jnp.bfloat16), jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    program = jax.make_jaxpr(model.apply)(variables, x)
    layers = [
        e for e in equations(program.jaxpr) if e.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    assert all(e.outvars[0].aval.dtype == jnp.bfloat16 for e in layers)
    assert all(operand.aval.dtype == jnp.bfloat16 for e in layers for operand in e.invars)
    kernels = [x for x in jax.tree.leaves(variables["params"]) if x.ndim > 1]
    assert len(layers) >= len(kernels)  # AlexNet averages by products, too


def test_strides_and_pooling():
    model = resnet20()
    shapes = []
    for e in jax.make_jaxpr(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3))).eqns:
        if e.primitive.name == "conv_general_dilated":
            shapes.append(e.outvars[0].aval.shape[1:])
    expected = [(32, 32, 16)] * 7 + [(16, 16, 32)] * 7 + [(8, 8, 64)] * 7
    assert shapes == expected


@pytest.mark.parametrize("place", range(4))
def test_pooling_does_not_lose_a_pixel_that_is_not_finite(place):
    x = jnp.arange(4.0).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
    assert np.isnan(layers.max_pool(x, 2, 2)).all()


@pytest.mark.slow
def test_convolutions_start_he_normal_by_fan_out():
    variables, _ = small()
    kernels = [leaf for path, leaf in jax.tree.leaves_with_path(variables["params"]) if "Conv" in str(path)]
    assert len(kernels) == 9
    for kernel in kernels:
        height, width, _, out = kernel.shape
        # The deviation of n normal draws is known to 1 / sqrt(2 n) of itself: allow 5 of those.
        ratio = float(kernel.std()) / (2 / (height * width * out)) ** 0.5
        assert abs(ratio - 1) < 5 / (2 * kernel.size) ** 0.5


@pytest.mark.slow
def test_the_stem_matches_the_formula():
    """The stem by hand: one channel in, 3x3 windows, batch statistics, momentum 0.9."""
    variables, x = small()
    collections = ["intermediates", "batch_stats"]
    apply = functools.partial(SMALL.apply, capture_intermediates=True, mutable=collections)
    step = functools.partial(apply, train=True)
    _, state = jax.jit(step)(variables, x)
    conv = state["intermediates"]["Conv_0"]["__call__"][0]
    norm = state["intermediates"]["BatchNorm_0"]["__call__"][0]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = variables["params"]["Conv_0"]["kernel"]
    by_hand = sum(padded[:, i : i + 8, j : j + 8, :] * kernel[i, j, 0] for i in range(3) for j in range(3))
    np.testing.assert_allclose(conv, by_hand, atol=1e-5)
    mean, var = by_hand.mean((0, 1, 2)), by_hand.var((0, 1, 2))
    np.testing.assert_allclose(norm, (by_hand - mean) / jnp.sqrt(var + 1e-5), atol=1e-4)
    got = state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(got["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(got["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_batch_norm_follows_train():
    (variables, x), evaluate, step = small(), EVALUATE, TRAIN

    logits, updates = step(variables, x)
    structures = [jax.tree.structure(v["batch_stats"]) for v in (updates, variables)]
    assert structures[0] == structures[1]
    assert not np.allclose(logits, evaluate(variables, x), atol=1e-3)

    # Training mode looks at the whole micro-batch, evaluation at one image alone.
    other = x.at[3].set(1 - x[3])
    assert not np.allclose(step(variables, other)[0][0], logits[0], atol=1e-4)
    np.testing.assert_allclose(evaluate(variables, other)[0], evaluate(variables, x)[0], atol=1e-5)

    # Training mode does not depend on the running statistics, evaluation does.
    moved = {**variables, **updates}
    np.testing.assert_allclose(step(moved, x)[0], logits, atol=1e-5)
    assert not np.allclose(evaluate(moved, x), evaluate(variables, x), atol=1e-3)


def test_ghost_batch_norm_of_two_micro_batches():
    """Two micro-batches, normalised apart, differ from one batch of both."""
    variables, x = small()
    x = x * jnp.arange(1, 9).reshape(8, 1, 1, 1) / 8
    apart = jnp.concatenate([TRAIN(variables, x[:4])[0], TRAIN(variables, x[4:])[0]])
    assert not np.allclose(apart, TRAIN(variables, x)[0], atol=1e-2)


def test_dropout_is_drawn_in_training_alone():
    """Of the inputs of both hidden layers, from the key that is passed: a network with dropout has no state."""
    model, x = models.AlexNet(num_classes=5, hidden=(50, 40)), jnp.zeros((2, 64, 64, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert set(variables) == {"params"}

    def draws(**options):
        eqns = jax.make_jaxpr(functools.partial(model.apply, **options))(variables, x).eqns
        return [e.outvars[0].aval.shape for e in eqns if "bernoulli" in str(e.params.get("name"))]

    assert draws() == []
    assert draws(train=True, rngs={"dropout": jax.random.key(1)}) == [(2, 36 * 256), (2, 50)]
    with pytest.raises(Exception, match='Dropout_0 needs PRNG for "dropout"'):
        jax.eval_shape(functools.partial(model.apply, train=True), variables, x)


def test_mlp_has_no_state():
    variables, x = init(mlp(), (2, 8, 8, 1))
    assert set(variables) == {"params"}
    np.testing.assert_array_equal(mlp().apply(variables, x, train=True), mlp().apply(variables, x))


def test_traced_once():
    (variables, x), traces = small(), []

    @jax.jit
    def forward(variables, x):
        traces.append(1)
        return SMALL.apply(variables, x)

    forward(variables, x)
    forward(jax.tree.map(jnp.zeros_like, variables), 2 * x)
    assert len(traces) == 1


@pytest.mark.parametrize("name", OF_IMAGES)
def test_integer_images_are_refused(name):
    with pytest.raises(ValueError, match=r"floating point.* got uint8"):
        create(name, 10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))


def test_resnet_refuses_flat_images():
    with pytest.raises(ValueError, match=r"\(N, H, W, C\).*shape \(1, 64\)"):
        resnet20().init(jax.random.key(0), jnp.zeros((1, 64)))


def test_create_names_the_known_models():
    with pytest.raises(ValueError, match=r"must be one of alexnet, .*mlp, .*got 'vgg'"):
        create("vgg", 10)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_svhn", "c2"])
def test_images_that_are_too_small(name):
    with pytest.raises(ValueError, match=r"at least for this network, got shape \(1, 8, 8, 3\)"):
        jax.eval_shape(create(name, 10).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


@pytest.mark.parametrize("make", [*MODELS.values(), lambda num_classes: mlp(10, (4, num_classes))])
def test_sizes_below_one(make):
    with pytest.raises(ValueError, match=r"must be at least 1, got"):
        make(num_classes=0)
