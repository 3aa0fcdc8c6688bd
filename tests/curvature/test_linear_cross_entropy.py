"""The chunked loss against the whole one: values, gradients, products, and what they hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import curvature, hvp
from hessabs.curvature import linear_cross_entropy

WIDTH, VOCABULARY = 5, 11


def problem(shape, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    params = {
        "inner": jnp.asarray(rng.normal(size=(WIDTH, WIDTH)), dtype),
        "kernel": jnp.asarray(rng.normal(size=(WIDTH, VOCABULARY)), dtype),
    }
    batch = {
        "x": jnp.asarray(rng.normal(size=(*shape, WIDTH)), dtype),
        "y": jnp.asarray(rng.integers(0, VOCABULARY, shape)),
        "weight": jnp.asarray(rng.integers(0, 3, shape), dtype),
    }
    return params, batch


def chunked(params, batch, size=4):
    hidden = jnp.tanh(batch["x"] @ params["inner"])
    return linear_cross_entropy(hidden, params["kernel"], batch["y"], weights=batch["weight"], chunk_size=size)


def whole(params, batch):
    logits = jnp.tanh(batch["x"] @ params["inner"]) @ params["kernel"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"])
    return jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"])


@pytest.mark.sampled
@pytest.mark.parametrize(("shape", "size"), [((13,), 4), ((3, 4), 4), ((2, 3), 100), ((7,), 1)])
def test_value_gradient_and_dense_hessian_are_those_of_the_whole_loss(shape, size):
    with jax.enable_x64(True):
        params, batch = problem(shape)
        got, want = (
            jax.jit(lambda p, f=f: (f(p), jax.grad(f)(p), jax.hessian(f)(p)))(params)
            for f in (lambda p: chunked(p, batch, size), lambda p: whole(p, batch))
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), got, want)


@pytest.mark.parametrize("label", [-100, VOCABULARY])
def test_the_label_of_a_token_that_does_not_count_may_be_anything(label):
    with jax.enable_x64(True):
        params, batch = problem((13,))
        other = {**batch, "y": jnp.where(batch["weight"] > 0, batch["y"], label)}
        assert (other["y"] == label).sum() > 2
        for f in (chunked, jax.grad(chunked)):
            jax.tree.map(np.testing.assert_array_equal, f(params, other), f(params, batch))


@pytest.mark.parametrize("mode", ["recompute", "linearize"])
def test_products_and_eigenvalues_of_a_hessian(mode):
    with jax.enable_x64(True):
        params, batch = problem((13,))
        start = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(1).normal(size=x.shape)), params)
        operators = [
            curvature.hessian(f, params, batch, linearize=mode == "linearize") for f in (chunked, whole)
        ]
        got, want = (curvature.eigsh(op, start, 3).eigenvalues for op in operators)
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_logits_of_low_precision_are_summed_in_float32():
    params, batch = problem((64,), jnp.float32)
    hidden, kernel = (x.astype(jnp.bfloat16) for x in (batch["x"], params["kernel"]))
    got = linear_cross_entropy(hidden, kernel, batch["y"])
    logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
    want = optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", ["gradient", "product"])
def test_it_holds_a_part_of_the_logits(name):
    tokens, vocabulary, width = 256, 4096, 16
    hidden = jnp.ones((tokens, width))
    batch = {"x": hidden, "y": jnp.zeros(tokens, int), "weight": jnp.ones(tokens)}
    params = {"inner": jnp.eye(width), "kernel": jnp.ones((width, vocabulary))}

    def memory(loss_fn):
        functions = {
            "gradient": lambda p: jax.grad(loss_fn)(p, batch),
            "product": lambda p: hvp(loss_fn, p, batch, p),
        }
        return jax.jit(functions[name]).lower(params).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * tokens * vocabulary
    assert memory(whole) > logits
    assert memory(lambda p, b: chunked(p, b, 16)) < logits / 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": jnp.ones((3, 4))}, r"must have shapes .* got \(3, 4\), \(5, 11\) and \(3,\)"),
        ({"labels": jnp.zeros((4,), int)}, r"got \(3, 5\), \(5, 11\) and \(4,\)"),
        ({"weights": jnp.ones((4,))}, r"`weights` must have the shape of `labels`, \(3,\), got \(4,\)"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1 token, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    arguments = {"hidden": jnp.ones((3, 5)), "kernel": jnp.ones((5, 11)), "labels": jnp.zeros(3, int)}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**arguments, **change})
