"""What the curvature tests share: small networks, and matrices with known spectra as operators on a pytree."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

NUM_CLASSES = 3


@pytest.fixture
def x64():
    """Run a test in float64."""
    with jax.enable_x64(True):
        yield


def _cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def _mlp(params, images):
    x = images.reshape(images.shape[0], -1)
    x = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def _conv(params, images):
    x = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.softplus(x + params["conv"]["bias"])
    return x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def _tied(params, images):
    x = images.reshape(images.shape[0], -1)
    x = jnp.tanh(x @ params["hidden"]["kernel"])
    return jnp.tanh(x @ params["hidden"]["kernel"].T) @ params["head"]["kernel"] + params["head"]["bias"]


_NETWORKS = {
    "mlp": (_mlp, {"hidden": {"kernel": (16, 5), "bias": (5,)}}, 5),
    "conv": (_conv, {"conv": {"kernel": (3, 3, 1, 4), "bias": (4,)}}, 4),
    "tied": (_tied, {"hidden": {"kernel": (16, 4)}}, 16),
}


@functools.cache  # what is known of it (its dense Hessian, say) serves every test
def make_problem(name, dtype=jnp.float32, num_examples=12, seed=0):
    """A network with params, a batch, its model function and its mean cross-entropy."""
    model, shapes, width = _NETWORKS[name]
    shapes = {**shapes, "head": {"kernel": (width, NUM_CLASSES), "bias": (NUM_CLASSES,)}}
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape) * 0.5, dtype),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    batch = {
        "image": jnp.asarray(rng.uniform(size=(num_examples, 4, 4, 1)), dtype),
        "label": jnp.asarray(rng.integers(NUM_CLASSES, size=num_examples), jnp.int32),
    }

    def model_fn(params, batch):
        return model(params, batch["image"])

    def loss_fn(params, batch):
        return _cross_entropy(model_fn(params, batch), batch["label"])

    def output_loss(outputs, batch):
        return _cross_entropy(outputs, batch["label"])

    return SimpleNamespace(
        params=params, batch=batch, model_fn=model_fn, loss_fn=loss_fn, output_loss=output_loss
    )


@pytest.fixture(name="make_problem")
def _make_problem():
    return make_problem


def to_dense(operator, like):
    """The matrix of an operator, one product per column."""
    flat, unravel = jax.flatten_util.ravel_pytree(like)

    def column(unit):
        return jax.flatten_util.ravel_pytree(operator(unravel(unit)))[0]

    columns = jax.jit(jax.vmap(column))(jnp.eye(flat.size, dtype=flat.dtype))
    return np.asarray(columns, np.float64).T


@pytest.fixture(name="to_dense")
def _to_dense():
    return to_dense


_KNOWN = {}


def dense_hessian(loss_fn, params, batch):
    """The matrix that ``jax.hessian`` gives for the flattened params, computed once for the same arrays."""
    key = (loss_fn, *map(id, jax.tree.leaves((params, batch))))
    if key not in _KNOWN:
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        matrix = np.asarray(jax.jit(jax.hessian(lambda x, batch: loss_fn(unravel(x), batch)))(flat, batch))
        _KNOWN[key] = matrix, (params, batch)  # what lives keeps its id
    return _KNOWN[key][0]


@pytest.fixture(name="dense_hessian")
def _dense_hessian():
    return dense_hessian


def random_like(tree, seed=0):
    """A pytree of normal numbers."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), tree)


@pytest.fixture(name="random_like")
def _random_like():
    return random_like


def _matrix_product(matrix, vector):
    flat, unravel = jax.flatten_util.ravel_pytree(vector)
    return unravel((matrix @ flat).astype(flat.dtype))


def matrix_operator(eigenvalues, dtype=jnp.float32, seed=0):
    """An operator on a pytree with the given eigenvalues and a random orthogonal eigenbasis."""
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    matrix = (basis * np.asarray(eigenvalues, np.float64)) @ basis.T
    vector = jnp.asarray(np.random.default_rng(seed + 1).normal(size=size), dtype)
    v0 = {"a": vector[: size // 3].reshape(1, -1), "b": vector[size // 3 :]}
    return SimpleNamespace(
        matvec=jax.tree_util.Partial(_matrix_product, jnp.asarray((matrix + matrix.T) / 2, dtype)),
        matrix=matrix,
        v0=v0,
        eigenvalues=np.sort(np.asarray(eigenvalues, np.float64)),
    )


@pytest.fixture(name="matrix_operator")
def _matrix_operator():
    return matrix_operator
