"""Every network trains a step, has a Hessian and an attack; one of each kind in bfloat16, too.

The first stage is of two blocks and later ones of one: more of them are the same programs over again.
``test_models.py`` counts the params of the whole networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import attacks, curvature, models

QUICK = {"c1_small": (16, 16, 1), "mlp": (8, 8, 1)}
LONG = {
    "alexnet": (64, 64, 3),
    "alexnet_svhn": (32, 32, 3),
    "c1": (16, 16, 3),
    "c2": (20, 20, 3),
    "resnet18": (32, 32, 3),
    "resnet18_cifar": (8, 8, 3),
    "resnet20": (8, 8, 3),
    "resnet50_tiny": (32, 32, 3),
    "squeezenext23": (8, 8, 3),
    "wide_resnet16_4": (8, 8, 3),
}
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
QUICK_DTYPE = {"c1_small": "float32", "mlp": "bfloat16"}
IN_BFLOAT16 = ("c1_small", "mlp", "resnet20")  # that each computes in it, test_models.py sees
CASES = [
    pytest.param(name, shape, DTYPES[dtype], marks=() if QUICK_DTYPE.get(name) == dtype else pytest.mark.slow)
    for name, shape in {**QUICK, **LONG}.items()
    for dtype in DTYPES
    if dtype == "float32" or name in IN_BFLOAT16
]

pytestmark = pytest.mark.sampled


def shallow(model):
    """A network with a first block in each of its stages, and one that follows it in the first stage."""
    if hasattr(model, "blocks"):
        return model.clone(blocks=(2, *(1 for _ in model.blocks[1:])))
    return model


def drawn(shapes):
    """Variables of a network that keep the size of what goes through it, without a compiled ``init``."""
    rng = np.random.default_rng(0)

    def draw(path, x):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, np.sqrt(2 / np.prod(x.shape[:-1])), x.shape).astype(x.dtype)
        return np.full(x.shape, name in ("scale", "var"), x.dtype)

    return jax.tree.map_with_path(draw, shapes)


def loss_of(model, state, *, train):
    """Mean cross-entropy; in training, of batch statistics and one draw of the dropout."""
    mode = {"rngs": {"dropout": jax.random.key(2)}, "mutable": list(state)} if train else {}

    def loss_fn(params, batch):
        logits = model.apply({"params": params, **state}, batch["image"], train=train, **mode)
        logits = logits[0] if train else logits
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))

    return loss_fn


def test_no_network_is_left_out():
    assert {*QUICK, *LONG, *models.OF_TEXT} == set(models.MODELS)


@pytest.mark.parametrize(("name", "shape", "dtype"), CASES)
def test_step_hessian_and_attack(name, shape, dtype):
    model = shallow(models.MODELS[name](num_classes=5, dtype=dtype))
    batch = {
        "image": jax.random.uniform(jax.random.key(1), (4, *shape)),
        "label": jnp.arange(4),
    }
    state = dict(drawn(jax.eval_shape(model.init, jax.random.key(0), batch["image"])))
    params = state.pop("params")

    @jax.jit
    def step(params, state, batch):
        loss_fn = loss_of(model, state, train=True)
        loss, gradient = jax.value_and_grad(loss_fn)(params, batch)
        size = optax.tree.norm(gradient)
        # A step whose first-order change is 0.01 nats.
        moved = jax.tree.map(lambda p, g: p - 0.01 / size**2 * g, params, gradient)
        return loss, loss_fn(moved, batch), size

    loss, after, size = step(params, state, batch)
    assert 0 < float(size) < np.inf
    if dtype is None:
        # The network is piecewise smooth: what the gradient promises is kept in part at least.
        assert float(loss) - 0.02 < float(after) < float(loss)
    else:
        assert np.isfinite(after)

    @jax.jit
    def second(params, state, batch):
        loss_fn = loss_of(model, state, train=False)
        product = curvature.hvp(loss_fn, params, batch, jax.tree.map(jnp.ones_like, params))
        attacked = attacks.fgsm(0.1)(loss_fn, params, batch)
        return optax.tree.norm(product), loss_fn(params, batch), loss_fn(params, attacked), attacked["image"]

    product, clean, attacked_loss, images = second(params, state, batch)
    assert 0 < float(product) < np.inf
    assert np.isfinite(attacked_loss)
    assert float(jnp.abs(images - batch["image"]).max()) == pytest.approx(0.1, abs=1e-6)
    if dtype is None:
        assert float(attacked_loss) > float(clean)
