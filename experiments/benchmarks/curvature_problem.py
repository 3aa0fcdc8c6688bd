"""The networks, weights and batches of the curvature benchmark."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import data, models

_SHAPES: dict[str, list[tuple[int, ...]]] = {
    "mlp": [(784, 256), (256, 256), (256, 10)],
    "cnn": [(5, 5, 1, 16), (5, 5, 16, 32), (1568, 10)],
}


def init(name: str, key: jax.Array) -> list[dict[str, jax.Array]]:
    """Params of a network, He-normal kernels and zero biases."""
    keys = jax.random.split(key, len(_SHAPES[name]))
    return [
        {
            "kernel": jax.random.normal(k, shape) * np.sqrt(2 / np.prod(shape[:-1])),
            "bias": jnp.zeros(shape[-1]),
        }
        for k, shape in zip(keys, _SHAPES[name], strict=True)
    ]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean softmax cross-entropy."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def _mlp(params: Any, batch: Any) -> jax.Array:
    x = batch["image"].reshape(batch["image"].shape[0], -1)
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return cross_entropy(x @ params[-1]["kernel"] + params[-1]["bias"], batch["label"])


def _cnn(params: Any, batch: Any) -> jax.Array:
    x = batch["image"]
    for layer in params[:-1]:
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + layer["bias"])
        n, h, w, c = x.shape
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
    x = x.reshape(x.shape[0], -1)
    return cross_entropy(x @ params[-1]["kernel"] + params[-1]["bias"], batch["label"])


LOSSES: dict[str, Callable[[Any, Any], jax.Array]] = {"mlp": _mlp, "cnn": _cnn}


def problem(name: str, images: dict[str, np.ndarray], size: int) -> tuple[Any, Any, Any]:
    """A network after 200 steps of training, and a batch of images."""
    if name == "resnet20":
        rng = np.random.default_rng(0)
        batch = {
            "image": jnp.asarray(rng.uniform(size=(size, 32, 32, 3)), jnp.float32),
            "label": jnp.asarray(rng.integers(10, size=size), jnp.int32),
        }
        module = models.create("resnet20", 10)
        variables = module.init(jax.random.key(0), batch["image"][:1])

        def loss_of(statistics: Any, params: Any, batch: Any) -> jax.Array:
            logits: Any = module.apply({"params": params, **statistics}, batch["image"], train=False)
            return cross_entropy(logits, batch["label"])

        params = variables.pop("params")
        return jax.tree_util.Partial(loss_of, variables), params, batch
    loss_fn = LOSSES[name]
    params = init(name, jax.random.key(0))
    step = jax.jit(lambda p, b: jax.tree.map(lambda x, g: x - 0.1 * g, p, jax.grad(loss_fn)(p, b)))
    for i in range(200):
        params = step(params, {n: jnp.asarray(x[i * 128 : (i + 1) * 128]) for n, x in images.items()})
    return loss_fn, params, {n: jnp.asarray(x[-size:]) for n, x in images.items()}


def load(data_dir: str) -> dict[str, np.ndarray]:
    """Read Fashion-MNIST's training set: images float32 in [0, 1] of shape (n, 28, 28, 1), labels int32."""
    train = data.load("fashion_mnist", data_dir=data_dir).train
    return {"image": train["image"].astype(np.float32) / 255, "label": train["label"].astype(np.int32)}
