"""The transformers of the benchmarks, their weights and tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from hessabs import models
from hessabs.models.transformer import Layer


class Problem(NamedTuple):
    """A network and its tokens."""

    vocabulary: int
    layers: int
    width: int
    heads: int
    sequences: int
    length: int

    def __str__(self) -> str:
        return (
            f"{self.layers} layers of width {self.width}, {self.vocabulary:,} tokens, "
            f"{self.sequences} sequences of {self.length}"
        )


PROBLEMS = {
    "char": Problem(96, 4, 128, 4, 8, 128),
    "wide": Problem(50_304, 2, 256, 4, 2, 128),
    "nanogpt": Problem(65, 6, 384, 6, 16, 256),  # nanoGPT's network for characters; for an accelerator
}


def build(problem: Problem, dtype: Any = None) -> tuple[Any, Any, Any, Any]:
    """Make (model, loss), the whole loss, the params after 20 steps, and tokens; dtype is of activations."""
    rng = np.random.default_rng(0)
    tokens = rng.zipf(1.3, (problem.sequences, problem.length + 1)) % problem.vocabulary
    batch = {"x": jnp.asarray(tokens[:, :-1], jnp.int32), "y": jnp.asarray(tokens[:, 1:], jnp.int32)}
    module = models.char_transformer(*problem[:4], dtype=dtype)
    params = module.init(jax.random.key(0), batch["x"])["params"]

    def model_fn(params: Any, batch: Any) -> jax.Array:
        logits: Any = module.apply({"params": params}, batch["x"])
        return logits

    def loss_fn(logits: jax.Array, batch: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()

    def whole(params: Any, batch: Any) -> jax.Array:
        return loss_fn(model_fn(params, batch), batch)

    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 0.1 * g, p, jax.grad(whole)(p, batch)))
    for _ in range(20):
        params = step(params)
    return (model_fn, loss_fn), whole, params, batch


def hidden(problem: Problem, params: Any, tokens: jax.Array, *, remat: bool, scan: bool) -> jax.Array:
    """Compute what the last layer of the library's network reads; layers stacked in params["layers"]."""
    module = Layer(tokens.shape[1], problem.heads, 2 * problem.layers, None)

    def layer(h: jax.Array, params: Any) -> tuple[jax.Array, None]:
        return module.apply({"params": params}, h), None  # type: ignore[return-value]

    layer = jax.checkpoint(layer) if remat else layer
    h = (params["embed"]["embedding"][tokens] + params["position_embed"]).reshape(-1, problem.width)
    if scan:
        h, _ = jax.lax.scan(layer, h, params["layers"])
    else:
        for i in range(problem.layers):
            h, _ = layer(h, jax.tree.map(lambda x, i=i: x[i], params["layers"]))
    normed: Any = nn.LayerNorm().apply({"params": params["LayerNorm_0"]}, h)
    out: jax.Array = normed.reshape(*tokens.shape, -1)
    return out
