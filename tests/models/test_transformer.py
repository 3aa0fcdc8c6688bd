"""The character transformer: its size, what it sees, and the same network written down plainly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import models

pytestmark = pytest.mark.sampled
TINY = models.char_transformer(7, layers=2, width=8, heads=2)
TOKENS = np.random.default_rng(0).integers(0, 7, (3, 6)).astype(np.int32)


def tiny():
    logits, variables = jax.jit(TINY.init_with_output)(jax.random.key(0), TOKENS)
    assert float(jnp.abs(logits).max()) < 0.5  # nearly uniform
    leaves, structure = jax.tree.flatten(variables["params"])
    rng = np.random.default_rng(1)  # so that no scale is 1 and no bias is 0
    return jax.tree.unflatten(structure, [x + 0.3 * rng.normal(size=x.shape).astype("f") for x in leaves])


def size(model, length):
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, length), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count(vocabulary, layers, width, length):
    dense = 4 * width * width + 2 * 4 * width * width + 5 * width  # no biases in the attention
    return (vocabulary + length + 2) * width + layers * (dense + 4 * width)


@pytest.mark.parametrize(
    ("model", "shape", "known"),
    [
        (models.char_transformer(), (96, 4, 128, 64), 811_776),
        (models.char_transformer_small(), (96, 2, 64, 64), 109_824),
        (models.char_transformer(40), (40, 4, 128, 32), None),
        (TINY, (7, 2, 8, 6), None),
    ],
)
def test_parameter_counts(model, shape, known):
    assert size(model, shape[-1]) == count(*shape)
    assert known in (None, count(*shape))


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def by_hand(params, tokens):
    """One sequence, token by token, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    embedding = params["embed"]["embedding"]
    h = embedding[tokens] + params["position_embed"]
    for name in ("_Layer_0", "_Layer_1"):
        p = params[name]
        qkv = norm(h, p["LayerNorm_0"]) @ p["qkv"]["kernel"]
        mixed = np.zeros_like(h)
        for at in range(len(tokens)):
            for head in range(2):
                q, k, v = (qkv[:, part * 8 + head * 4 : part * 8 + head * 4 + 4] for part in range(3))
                scores = np.exp(k[: at + 1] @ q[at] / 2)
                mixed[at, head * 4 : head * 4 + 4] = scores / scores.sum() @ v[: at + 1]
        h = h + mixed @ p["out"]["kernel"]
        x = norm(h, p["LayerNorm_1"]) @ p["up"]["kernel"] + p["up"]["bias"]
        x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        h = h + x @ p["down"]["kernel"] + p["down"]["bias"]
    return norm(h, params["LayerNorm_0"]) @ embedding.T


def test_it_is_the_network_written_down_plainly():
    params = tiny()
    logits = jax.jit(TINY.apply)({"params": params}, TOKENS)
    assert (logits.shape, logits.dtype) == ((3, 6, 7), jnp.float32)
    want = np.stack([by_hand(params, sequence) for sequence in TOKENS])
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
    # What comes later is not seen, and what comes first is.
    changed = TOKENS.copy()
    changed[:, 3] = (changed[:, 3] + 1) % 7
    other = jax.jit(TINY.apply)({"params": params}, changed)
    np.testing.assert_array_equal(other[:, :3], logits[:, :3])
    assert (np.abs(other[:, 3:] - logits[:, 3:]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("name", models.OF_TEXT)
def test_dtypes(name):
    for dtype in (None, jnp.bfloat16):
        model = models.MODELS[name](num_classes=50, dtype=dtype)
        tokens = jnp.zeros((2, 16), jnp.int32)
        logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), tokens)
        assert (logits.shape, logits.dtype) == ((2, 16, 50), jnp.float32)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"integers of shape \(N, length\), got float32\(1, 8, 8, 1\)"):
        TINY.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="must be a multiple of heads=3, got 8"):
        models.char_transformer(7, width=8, heads=3)
