"""Blocks against the rows and columns of the dense matrix, and what a product of them costs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature, paths

pytestmark = pytest.mark.sampled

WHERE = {"head": "head", "kernels": lambda path: path.endswith("kernel"), "one leaf": "hidden/bias"}


@pytest.mark.parametrize("linearize", [False, True])
@pytest.mark.parametrize("where", WHERE)
def test_block_is_that_of_the_dense_hessian(x64, make_problem, dense_hessian, to_dense, where, linearize):
    problem = make_problem("mlp", jnp.float64)
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
    block = curvature.restrict(operator, problem.params, WHERE[where])
    chosen, _ = paths.partition(problem.params, WHERE[where])
    want = _dense_block(dense_hessian(problem.loss_fn, problem.params, problem.batch), problem.params, chosen)
    np.testing.assert_allclose(to_dense(block, chosen), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["gauss_newton", "callable", "data set", "split"])
def test_block_of_every_kind_of_operator(x64, make_problem, random_like, kind):
    problem = make_problem("mlp", jnp.float64, num_examples=2)
    if kind == "gauss_newton":
        whole = curvature.gauss_newton(
            problem.model_fn, problem.output_loss, problem.params, problem.batch, linearize=True
        )
    elif kind == "callable":
        matrix = np.random.default_rng(0).normal(size=(103, 103))

        def whole(vector):
            flat, unravel = jax.flatten_util.ravel_pytree(vector)
            return unravel(jnp.asarray(matrix + matrix.T) @ flat)

    elif kind == "data set":
        whole = curvature.dataset_hessian(problem.loss_fn, problem.params, [problem.batch])
    else:
        whole = curvature.hessian(
            problem.loss_fn, problem.params, problem.batch, linearize="auto", memory_budget=1
        )
    block = curvature.restrict(whole, problem.params, "hidden")
    chosen, others = paths.partition(random_like(problem.params), "hidden")
    padded = paths.combine(chosen, jax.tree.map(jnp.zeros_like, others))
    want, _ = paths.partition(whole(padded), "hidden")
    got = block(chosen)
    assert jax.tree.structure(got) == jax.tree.structure(chosen)
    np.testing.assert_allclose(_flat(got), _flat(want), rtol=1e-10, atol=1e-12)


def test_linearised_block_costs_no_more_than_the_head_alone():
    # A wide trunk below a small head: flops, as the compiler counts them, show whether the trunk was cut.
    params = {"trunk": jnp.ones((200, 100)) / 200, "head": jnp.ones((100, 3)) / 100}
    batch = jnp.ones((64, 200))

    def loss(params, x):
        return jnp.mean(jnp.tanh(jnp.tanh(x @ params["trunk"]) @ params["head"]) ** 2)

    def head_loss(head, features):
        return jnp.mean(jnp.tanh(features @ head) ** 2)

    operator = curvature.hessian(loss, params, batch, linearize=True)
    block = curvature.restrict(operator, params, "head")
    alone = curvature.hessian(head_loss, params["head"], jnp.tanh(batch @ params["trunk"]), linearize=True)
    chosen, _ = paths.partition(params, "head")
    assert _flops(block, chosen) <= 1.05 * _flops(alone, params["head"])
    assert _flops(operator, params) > 10 * _flops(block, chosen)


def test_last_layer_is_the_block_of_the_hessian(x64, make_problem, to_dense, dense_hessian):
    problem = make_problem("mlp", jnp.float64)
    hidden = problem.params["hidden"]

    def features(batch):
        x = batch["image"].reshape(batch["image"].shape[0], -1)
        return jnp.tanh(x @ hidden["kernel"] + hidden["bias"])

    head = problem.params["head"]
    want = dense_hessian(problem.loss_fn, problem.params, problem.batch)
    chosen, _ = paths.partition(problem.params, "head")
    got = to_dense(curvature.last_layer(features, head, problem.batch), head)
    np.testing.assert_allclose(got, _dense_block(want, problem.params, chosen), rtol=1e-9, atol=1e-12)
    assert np.linalg.eigvalsh(got).min() > -1e-12
    without_bias = {"kernel": head["kernel"]}
    got = to_dense(curvature.last_layer(features, without_bias, problem.batch), without_bias)
    linear = curvature.hessian(
        lambda p, b: problem.output_loss(features(b) @ p["kernel"], b), without_bias, problem.batch
    )
    np.testing.assert_allclose(got, to_dense(linear, without_bias), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", ["kernel", "equinox", "output_axis"])
def test_last_layer_of_sequences_is_the_dense_hessian(
    x64, to_dense, dense_hessian, random_like, layout, masked
):
    features, kernel, bias = (random_like(jnp.ones(s), i) for i, s in enumerate([(2, 4, 3), (3, 3), (3,)]))
    labels = jnp.arange(8).reshape(2, 4) % 3
    weights = jnp.array([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 2.0, 0.0]]) if masked else None
    if layout == "kernel":
        head, options, logits_of = (
            {"kernel": kernel, "bias": bias},
            {},
            lambda h, a: a @ h["kernel"] + h["bias"],
        )
    else:  # (classes, features), a square matrix: no shape tells the layouts apart
        head, options = {"kernel": kernel.T}, {"output_axis": 0}
        logits_of = lambda h, a: a @ h["kernel"].T  # noqa: E731
    if layout == "equinox":
        linear = eqx.nn.Linear(3, 3, key=jax.random.key(0))
        head, options = eqx.tree_at(lambda m: (m.weight, m.bias), linear, (kernel.T, bias)), {}
        logits_of = lambda h, a: a @ h.weight.T + h.bias  # noqa: E731

    def loss(head, features):
        log_p = jax.nn.log_softmax(logits_of(head, features))
        losses = -jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
        return jnp.mean(losses) if weights is None else jnp.sum(weights * losses) / jnp.sum(weights)

    operator = curvature.last_layer(lambda x: x, head, features, weights=weights, **options)
    np.testing.assert_allclose(to_dense(operator, head), dense_hessian(loss, head, features), atol=1e-12)


def test_last_layer_without_a_weight_is_zero():
    head = {"kernel": jnp.ones((3, 2))}
    operator = curvature.last_layer(lambda x: x, head, jnp.ones((4, 3)), weights=jnp.zeros(4))
    np.testing.assert_array_equal(operator(head)["kernel"], 0)
    with pytest.raises(ValueError, match=r"without the last axis, \(4,\), got \(4, 1\)"):
        curvature.last_layer(lambda x: x, head, jnp.ones((4, 3)), weights=jnp.zeros((4, 1)))


def test_bad_blocks_are_refused(make_problem):
    problem = make_problem("mlp")
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    with pytest.raises(
        ValueError, match="chooses none of the leaves: got 'haed', there are head/bias, head/kernel"
    ):
        curvature.restrict(operator, problem.params, "haed")
    with pytest.raises(ValueError, match=r"`params` must have the structure of `the params of `operator``"):
        curvature.restrict(operator, {"head": problem.params["head"]}, "head")
    with pytest.raises(ValueError, match=r"one kernel of shape \(features, classes\).*got shapes \[\(2,\)\]"):
        curvature.last_layer(lambda b: b, {"bias": jnp.ones(2)}, jnp.ones((3, 2)))
    with pytest.raises(
        ValueError, match=r"shape \(examples, 4\) to enter a kernel of shape \(4, 2\), got \(3, 2\)"
    ):
        curvature.last_layer(lambda b: b, {"kernel": jnp.ones((4, 2))}, jnp.ones((3, 2)))


def _dense_block(matrix, params, chosen):
    marks = jax.tree.map(
        lambda c, x: np.zeros(x.shape) if c is None else np.ones(x.shape),
        chosen,
        params,
        is_leaf=lambda x: x is None,
    )
    rows = np.flatnonzero(_flat(marks))
    return matrix[np.ix_(rows, rows)]


def _flops(operator, vector):
    return jax.jit(lambda m, v: m(v)).lower(operator, vector).compile().cost_analysis()["flops"]


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["data set", "split", "plain"])
def test_blocks_of_a_preconditioned_operator(kind):
    rng = np.random.default_rng(0)
    params = {"a": jnp.asarray(rng.normal(size=2), jnp.float32), "b": jnp.ones(1)}
    x, scale = (
        jnp.asarray(rng.normal(size=(8, 3)), jnp.float32),
        {"a": jnp.array([1.0, 4.0]), "b": jnp.array([9.0])},
    )

    def loss(params, x):
        return jnp.mean(jnp.tanh(x[:, :2] @ params["a"] + x[:, 2] * params["b"][0]) ** 2)

    whole = curvature.hessian(loss, params, x)
    if kind == "data set":
        whole = curvature.dataset_hessian(loss, params, [x[:4], x[4:]])
    elif kind == "split":
        whole = curvature.hessian(loss, params, x, linearize="auto", memory_budget=1)
    block = curvature.restrict(curvature.preconditioned(whole, scale), params, "a")
    matrix = jax.hessian(lambda a: loss({**params, "a": a}, x))(params["a"])
    want = matrix / np.outer([1, 2], [1, 2])
    got = np.stack([block({"a": unit, "b": None})["a"] for unit in jnp.eye(2)])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
    top = curvature.eigsh(block, {"a": jnp.ones(2), "b": None}, 2)
    np.testing.assert_allclose(top.eigenvalues, np.linalg.eigvalsh(want)[::-1], rtol=1e-3)
