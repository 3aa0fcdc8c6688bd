"""A decoder-only transformer of characters, its input embedding also its output matrix.

Between the attentions the tokens of a batch are the rows of one matrix: XLA on the CPU computes the gradients
of layer norms and products of matrices faster than those of arrays with three axes.

References:
    Radford et al. (2019), "Language models are unsupervised multitask learners", for norms before the layers.
    Press and Wolf (2017), arXiv:1608.05859, for the tied embedding.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import initializers
from flax.typing import Dtype

from hessabs.checks import require

_FIRST = initializers.normal(0.02)  # of embeddings: the first predictions are nearly uniform


class CharTransformer(nn.Module):
    """Causal self-attention and GELU layers with pre-layer-norm; see ``char_transformer``."""

    num_classes: int  # tokens of the vocabulary
    layers: int
    width: int
    heads: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, length, num_classes) of the token after each of ``x``, integers (N, length)."""
        del train  # no dropout, no statistics
        if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(f"`x` must be tokens, integers of shape (N, length), got {x.dtype}{x.shape}.")
        length, width = x.shape[1], self.width
        embed = nn.Embed(self.num_classes, width, dtype=self.dtype, embedding_init=_FIRST, name="embed")
        places = self.param("position_embed", _FIRST, (length, width))
        h = embed(x)
        h = (h + places.astype(h.dtype)).reshape(-1, width)
        for i in range(self.layers):  # by the names that saved params have
            h = Layer(length, self.heads, 2 * self.layers, self.dtype, name=f"_Layer_{i}")(h)
        logits = embed.attend(nn.LayerNorm(dtype=self.dtype)(h)).reshape(*x.shape, self.num_classes)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class Layer(nn.Module):
    """Attention within each sequence, then two dense layers; ``h`` has shape (N * length, width)."""

    length: int
    heads: int
    depth: int  # of the network in branches: so many are added up
    dtype: Dtype | None

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        width = h.shape[-1]
        added = initializers.variance_scaling(1 / self.depth, "fan_in", "truncated_normal")
        x = nn.LayerNorm(dtype=self.dtype)(h)
        x = nn.Dense(3 * width, use_bias=False, dtype=self.dtype, name="qkv")(x)
        x = _attend(x.reshape(-1, self.length, 3, self.heads, width // self.heads)).reshape(h.shape)
        h = h + nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=added, name="out")(x)
        x = nn.LayerNorm(dtype=self.dtype)(h)
        x = nn.gelu(nn.Dense(4 * width, dtype=self.dtype, name="up")(x))
        return h + nn.Dense(width, dtype=self.dtype, kernel_init=added, name="down")(x)


def _attend(qkv: jax.Array) -> jax.Array:
    """Mix the values of each token and those before it, by head: (N, length, 3, heads, d) without the 3."""
    query, key, value = (qkv[:, :, part] for part in range(3))
    scores = jnp.einsum("nqhd,nkhd->nhqk", query * query.shape[-1] ** -0.5, key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    places = jnp.arange(qkv.shape[1])
    seen = places[:, None] >= places
    shares = jax.nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))
    return jnp.einsum("nhqk,nkhd->nqhd", shares.astype(value.dtype), value)


def char_transformer(
    num_classes: int = 96, layers: int = 4, width: int = 128, heads: int = 4, *, dtype: Dtype | None = None
) -> CharTransformer:
    """Create a transformer that predicts each next character.

    Pre-layer-norm, learned positions, a GELU layer of four widths, no biases in the attention; the output
    matrix is the embedding of the inputs. The length of the sequences is that of the tokens that the network is
    initialised with. With the defaults and 64 tokens it has 811,776 parameters.

    Args:
        num_classes: The number of tokens of the vocabulary, at least 1.
        layers: The number of layers, at least 1.
        width: The size of a token's vector, a multiple of ``heads``.
        heads: The number of heads of the attention, at least 1.
        dtype: As of ``mlp``; the softmax of the attention is at least float32.

    Returns:
        A module called as ``module.apply(variables, x, train=False)``, with ``x`` integers (N, length); the
        result is (N, length, num_classes).

    Raises:
        ValueError: A number is below 1, or ``width`` no multiple of ``heads``.

    Example:
        >>> variables = jax.eval_shape(char_transformer().init, jax.random.key(0), jnp.zeros((1, 64), int))
        >>> sum(p.size for p in jax.tree.leaves(variables["params"]))
        811776
    """
    require("be at least 1", num_classes=num_classes, layers=layers, width=width, heads=heads)
    if width % heads:
        raise ValueError(f"`width` must be a multiple of heads={heads}, got {width}.")
    return CharTransformer(num_classes=num_classes, layers=layers, width=width, heads=heads, dtype=dtype)


def char_transformer_small(num_classes: int = 96, *, dtype: Dtype | None = None) -> CharTransformer:
    """Create ``char_transformer`` with 2 layers of width 64: 109,824 parameters for 64 tokens."""
    return char_transformer(num_classes, 2, 64, dtype=dtype)
