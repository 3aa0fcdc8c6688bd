"""Gauss-Newton and Fisher matrices against their definitions, written out densely."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import curvature

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize(
    ("network", "mode", "linearize"),
    [
        ("mlp", "forward", False),
        ("mlp", "reverse", True),
        ("conv", "forward", True),
        ("conv", "reverse", False),
        ("tied", "forward", True),
    ],
)
def test_gauss_newton_is_the_dense_sandwich(x64, make_problem, to_dense, network, mode, linearize):
    problem = make_problem(network, jnp.float64)
    operator = curvature.gauss_newton(
        problem.model_fn, problem.output_loss, problem.params, problem.batch, linearize=linearize, mode=mode
    )
    jacobian, logits = _jacobian(problem)
    middle = jax.jit(jax.hessian(lambda out: problem.output_loss(out, problem.batch)))(logits)
    middle = middle.reshape(logits.size, -1)
    want = jacobian.T @ middle @ jacobian
    np.testing.assert_allclose(to_dense(operator, problem.params), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("linearize", [False, True])
def test_fisher_is_the_expectation_over_labels(x64, make_problem, to_dense, linearize):
    problem = make_problem("mlp", jnp.float64, num_examples=4)
    operator = curvature.fisher(problem.model_fn, problem.params, problem.batch, linearize=linearize)
    _, logits = _jacobian(problem)
    probabilities = np.asarray(jax.nn.softmax(logits))
    want, gradient = 0, jax.jit(jax.grad(problem.loss_fn))
    for i in range(4):
        for label in range(logits.shape[1]):
            one = {"image": problem.batch["image"][i : i + 1], "label": jnp.array([label])}
            g = _flat(gradient(problem.params, one))
            want = want + probabilities[i, label] * np.outer(g, g) / 4
    np.testing.assert_allclose(to_dense(operator, problem.params), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("distribution", ["bernoulli", "normal"])
def test_other_distributions_have_their_closed_form(x64, to_dense, distribution):
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=(3, 1)))
    operator = curvature.fisher(lambda w, x: x @ w, w, x, distribution=distribution)
    p = np.asarray(jax.nn.sigmoid(x @ w))[:, 0]
    weights = p * (1 - p) if distribution == "bernoulli" else np.ones(6)
    np.testing.assert_allclose(to_dense(operator, w), x.T @ (weights[:, None] * x) / 6, rtol=1e-10)


@pytest.mark.parametrize("linearize", [False, True])
def test_empirical_fisher_is_the_second_moment_of_the_gradients(x64, make_problem, to_dense, linearize):
    problem = make_problem("mlp", jnp.float64, num_examples=5)
    operator = curvature.empirical_fisher(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
    gradient = jax.jit(jax.grad(problem.loss_fn))
    gradients = [
        _flat(gradient(problem.params, jax.tree.map(lambda x, i=i: x[i : i + 1], problem.batch)))
        for i in range(5)
    ]
    want = np.stack(gradients).T @ np.stack(gradients) / 5
    np.testing.assert_allclose(to_dense(operator, problem.params), want, rtol=1e-9, atol=1e-12)


def test_gauss_newton_equals_the_hessian_of_a_linear_model(x64, make_problem, to_dense):
    problem = make_problem("mlp", jnp.float64)
    features = jnp.asarray(np.random.default_rng(1).normal(size=(12, 4)))
    head = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)))
    batch = {"x": features, "label": problem.batch["label"]}
    hessian = curvature.hessian(lambda w, b: problem.output_loss(b["x"] @ w, b), head, batch)
    gauss_newton = curvature.gauss_newton(lambda w, b: b["x"] @ w, problem.output_loss, head, batch)
    np.testing.assert_allclose(to_dense(gauss_newton, head), to_dense(hessian, head), rtol=1e-9, atol=1e-12)


def test_mapped_axis_gives_the_product_of_the_whole_batch(make_problem, random_like):
    problem = make_problem("mlp")
    vector = random_like(problem.params)

    def product(batch, **options):
        return curvature.empirical_fisher(problem.loss_fn, problem.params, batch, **options)(vector)

    split = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), problem.batch)
    got = jax.pmap(lambda b: product(b, linearize=True, axis_name="i"), axis_name="i")(split)
    want = product(problem.batch)
    np.testing.assert_allclose(_flat(jax.tree.map(lambda x: x[2], got)), _flat(want), rtol=1e-4, atol=1e-6)


def test_new_params_retrace_nothing(make_problem):
    problem, other = make_problem("mlp"), make_problem("mlp", seed=3)
    traces = []

    def model(params, batch):
        traces.append(1)
        return problem.model_fn(params, batch)

    consumer = jax.jit(lambda operator, v: operator(v))
    results, counts = [], []
    for p in (problem, other):
        for linearize in (False, True):
            operator = curvature.gauss_newton(model, _output_loss, p.params, p.batch, linearize=linearize)
            results.append(_flat(consumer(operator, problem.params)))
        counts.append(len(traces))
    assert counts == [2, 2]
    np.testing.assert_allclose(results[2], results[3], rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(results[0] - results[2]) > 1e-3


def test_unknown_options_are_refused(make_problem):
    problem = make_problem("mlp")
    with pytest.raises(
        ValueError, match="`distribution` must be one of categorical, bernoulli, normal, got 'beta'"
    ):
        curvature.fisher(problem.model_fn, problem.params, problem.batch, distribution="beta")
    with pytest.raises(
        ValueError, match="`mode` must be one of forward, reverse, finite_difference, got 'both'"
    ):
        curvature.gauss_newton(
            problem.model_fn, problem.output_loss, problem.params, problem.batch, mode="both"
        )
    with pytest.raises(ValueError, match=r"must return a scalar, the mean over the batch, got shape \(12, 3\)"):
        curvature.gauss_newton(problem.model_fn, lambda o, b: o, problem.params, problem.batch)(problem.params)


def _output_loss(outputs, batch):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(outputs), batch["label"][:, None], axis=1))


def _jacobian(problem):
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    model = lambda x: problem.model_fn(unravel(x), problem.batch)  # noqa: E731
    jacobian, logits = jax.jit(lambda x: (jax.jacobian(model)(x), model(x)))(flat)
    return np.asarray(jacobian).reshape(logits.size, flat.size), logits


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


@jax.custom_vjp
def _cube(x):
    return x**3


_cube.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


def test_custom_vjp_needs_the_reverse_mode():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    w = jnp.array([1.0, -2.0, 0.5])
    loss = lambda out, b: jnp.mean(out**2)  # noqa: E731
    blocked = lambda w, x: _cube(x @ w)  # noqa: E731
    want = curvature.gauss_newton(lambda w, x: (x @ w) ** 3, loss, w, x)(w)
    with pytest.raises(TypeError, match=r'custom_vjp.*mode="reverse" \(exact\) of `gauss_newton`'):
        curvature.gauss_newton(blocked, loss, w, x)(w)
    for linearize in (False, True):
        operator = curvature.gauss_newton(blocked, loss, w, x, mode="reverse", linearize=linearize)
        np.testing.assert_allclose(operator(w), want, rtol=1e-5)
