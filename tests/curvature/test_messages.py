"""What is said about params, losses, vectors and batches that cannot be meant, and the right value beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hessabs import curvature
from hessabs.curvature.passes import Passes, one_pass
from tests.curvature import models

pytestmark = pytest.mark.sampled

W, X, KEY = jnp.ones(3), jnp.ones((2, 3)), jax.random.key(0)


def loss(w, x):
    return jnp.mean((x @ w) ** 2)


def apply_loss(model, x):
    return jnp.mean(model(x) ** 2)


def split(model):
    return nnx.split(model, nnx.Param, ...)


def merged_loss(**options):
    graphdef, params, rest = split(models.Nnx(nnx.Rngs(0), **options))
    return lambda p, x: apply_loss(nnx.merge(graphdef, p, rest), x), params


def updated_loss():
    model = models.Nnx(nnx.Rngs(0))

    def loss(params, x):
        nnx.update(model, params)
        return apply_loss(model, x)

    return loss, split(model)[1]


def whole_nnx():
    return apply_loss, models.Nnx(nnx.Rngs(0))


def whole_state():
    return apply_loss, nnx.state(models.Nnx(nnx.Rngs(0), batch_norm=True))


# Name: (loss and params, what is said).
LOSSES = {
    "(loss, aux)": (lambda: (lambda w, x: (loss(w, x), w), W), r"got a tuple of 2.*pass `has_aux=True`"),
    "a dict": (lambda: (lambda w, x: {"loss": loss(w, x)}, W), "must return a scalar, got {'loss': "),
    "a row": (lambda: (lambda w, x: x @ w, W), r"the mean over the batch, got shape \(2,\)"),
    "batch norm in training": (lambda: merged_loss(batch_norm=True), r"Call `model.eval\(\)`.*BatchStat"),
    "dropout": (lambda: merged_loss(dropout=True), r"Call `model.eval\(\)` before the model is split"),
    "nnx.update": (updated_loss, r"`nnx.merge` instead of changing it with `nnx.update`"),
    "whole NNX module": (whole_nnx, r"holds a whole NNX module.*nnx.split\(model, nnx.Param, ...\)"),
    "NNX state with statistics": (whole_state, r"holds the batch statistics.*nnx.split"),
    "whole Equinox module": (lambda: (apply_loss, models.equinox()), r"at .activation; .*eqx.partition\(model"),
    "Linen variables": (
        lambda: (loss, {"params": W, "batch_stats": W}),
        r'holds "batch_stats" beside "params": give `variables\["params"\]`',
    ),
    "a Python float": (
        lambda: (lambda p, x: p["b"] * loss(p["w"], x), {"w": W, "b": 2.0}),
        r"got the Python float 2.0 at \['b'\]; make arrays of them, `jax.tree.map\(jnp.asarray, params\)`",
    ),
    "complex": (
        lambda: (loss, W.astype(jnp.complex64)),
        "got complex64 at the root; .* real and imaginary part",
    ),
    "integers": (lambda: (loss, jnp.ones(3, jnp.int32)), "got int32 at the root; bind other arrays"),
    "nothing": (lambda: (loss, {}), "at least one array, got an empty pytree"),
    "no number": (lambda: (loss, jnp.ones((0, 3))), "at least one number, got arrays of size zero only"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_params(name):
    make, message = LOSSES[name]
    function, params = make()
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        curvature.hessian(function, params, models.X if name not in ("a row",) else X)(params)


def test_evaluation_mode_is_what_helps(x64, dense_hessian, to_dense):
    model = models.Nnx(nnx.Rngs(0), batch_norm=True, dropout=True)
    model.eval()
    graphdef, params, rest = split(model)
    function = lambda p, x: apply_loss(nnx.merge(graphdef, p, rest), x)  # noqa: E731
    x = models.X.astype(jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    got = to_dense(curvature.hessian(function, params, x), params)
    np.testing.assert_allclose(got, dense_hessian(function, params, x), atol=1e-10)


def test_aux_is_dropped():
    with_aux = lambda w, x: (loss(w, x), {"logits": x @ w})  # noqa: E731
    model_with_aux = lambda w, x: (x @ w, "statistics")  # noqa: E731
    square = lambda outputs, x: jnp.mean(outputs**2)  # noqa: E731
    want = 2 * X.T @ (X @ W) / 2
    for got in (
        curvature.hvp(with_aux, W, X, W, has_aux=True),
        curvature.hessian(with_aux, W, X, has_aux=True)(W),
        curvature.hessian(with_aux, W, X, has_aux=True, linearize=True)(W),
        curvature.hessian(with_aux, W, X, has_aux=True, mode="reverse_over_reverse")(W),
        curvature.gauss_newton(model_with_aux, square, W, X, has_aux=True)(W),
        2
        * curvature.fisher(model_with_aux, W[:, None], X, has_aux=True, distribution="normal")(W[:, None])[
            :, 0
        ],
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(
        curvature.empirical_fisher(with_aux, W, X, has_aux=True)(W),
        curvature.empirical_fisher(loss, W, X)(W),
        rtol=1e-5,
    )
    on_inputs = lambda w, b: (jnp.mean(jnp.sum(b["image"] ** 2, 1)), b)  # noqa: E731
    operator = curvature.input_hessian(on_inputs, W, {"image": X}, has_aux=True)
    np.testing.assert_allclose(operator(X), 2 * X, rtol=1e-5)
    with pytest.raises(ValueError, match=r"asks for a function that returns \(result, aux\), got \w+\."):
        curvature.hvp(loss, W, X, W, has_aux=True)
    with pytest.raises(ValueError, match="as the loss on the outputs of `gauss_newton` must"):
        curvature.gauss_newton(lambda w, x: x @ w, lambda o, x: (square(o, x), o), W, X)(W)


@pytest.mark.parametrize("linearize", [False, True])
def test_vectors_have_the_dtype_of_the_params(linearize):
    params = W.astype(jnp.bfloat16)
    operator = curvature.hessian(loss, params, X.astype(jnp.bfloat16), linearize=linearize)
    with pytest.raises(
        ValueError, match=r"dtypes of `params`.*float32\[3\].*bfloat16\[3\]; cast it, `jax.tree"
    ):
        operator(W)
    np.testing.assert_array_equal(operator(W.astype(params.dtype)).astype(jnp.float32), 2 * 3 * jnp.ones(3))
    # NumPy's float64 is what JAX makes float32 of.
    np.testing.assert_array_equal(curvature.hvp(loss, W, X, np.ones(3)), 6)
    head = {"kernel": jnp.ones((3, 2), jnp.bfloat16)}
    with pytest.raises(ValueError, match="`vector` must have the dtypes of `head_params`"):
        curvature.last_layer(lambda x: x, head, X)({"kernel": jnp.ones((3, 2))})


def test_a_leaf_of_size_zero_is_no_trouble():
    params = {"w": W, "none": jnp.ones((0, 2))}
    batch = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    function = lambda p, x: loss(p["w"], x) + jnp.sum(p["none"] ** 3)  # noqa: E731
    for mode in ("forward_over_reverse", "finite_difference"):
        operator = curvature.hessian(function, params, batch, mode=mode)
        product = operator(params)
        np.testing.assert_allclose(product["w"], 2 * jnp.array([1, 4, 9]) / 3, rtol=1e-3)
        assert product["none"].shape == (0, 2)
    operator = curvature.hessian(function, params, batch)
    np.testing.assert_allclose(curvature.eigsh(operator, params, 1).eigenvalues, 6, rtol=1e-3)


class Once:
    """A loader whose second pass is empty, and that does not look like an iterator."""

    def __init__(self):
        self._batches = iter([1, 2])

    def __iter__(self):
        return (batch for batch in self._batches)


def test_batches_are_read_again_or_refused():
    iterator = iter([1, 2])
    for batches in ([1, 2], (1, 2), lambda: iter([1, 2]), lambda: [1, 2]):
        passes = Passes(batches)
        assert [list(passes()) for _ in range(3)] == [[1, 2]] * 3
        assert list(one_pass(batches)) == [1, 2]
    assert list(one_pass(iter([1, 2]))) == [1, 2]
    for batches in (Once(), lambda: iterator):
        passes = Passes(batches)
        assert list(passes()) == [1, 2]
        with pytest.raises(ValueError, match=r"gave batches in one pass and none in the next; .*lambda: iter"):
            list(passes())
    with pytest.raises(ValueError, match="list_iterator can be read only once; pass a list"):
        Passes(iter([1]))
    for read in (one_pass, lambda batches: Passes(batches)()):
        with pytest.raises(
            ValueError, match=r"must be an iterable of batches, got a dict; `\[batch\]` for one"
        ):
            list(read({"x": 1}))
        with pytest.raises(ValueError, match="or a function that returns one, got int"):
            list(read(3))
        with pytest.raises(ValueError, match="must return an iterable of batches, but returned int"):
            list(read(lambda: 3))
        with pytest.raises(ValueError, match="The data set is empty"):
            list(read([]))


def outputs(w, x):
    return x @ w


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: curvature.fisher(outputs, W, X)(W),
            r"of shape \(examples, ..., outputs\), got the shape \(2,\)",
        ),
        (lambda: curvature.fisher(lambda w, x: {"a": x}, W, X)(W), r"array of outputs .* got dict"),
        (lambda: curvature.critical_batch_size(loss, W, X), r"got an array of shape \(2, 3\); `\[batch\]`"),
        (lambda: curvature.dataset_hessian(loss, W, np.ones((4, 2, 3))), r"got an array of shape \(4, 2, 3\)"),
        (lambda: curvature.critical_batch_size(loss, jnp.arange(3), [X]), r"`params` must hold floating-point"),
        (lambda: curvature.sharpness_along(loss, jnp.arange(3), X, W), r"`params` must hold floating-point"),
        (lambda: curvature.batch_sharpness(loss, W, {"x": X}), r"`batches` must be an iterable .* got a dict"),
        (
            lambda: curvature.preconditioned(curvature.hessian(loss, W, X), jnp.arange(3)),
            r"`scale` must hold float",
        ),
        (
            lambda: curvature.preconditioned(curvature.hessian(loss, W, X), jnp.ones(2)),
            r"the structure of `the par",
        ),
        (
            lambda: curvature.check_deterministic(
                curvature.preconditioned(curvature.dataset_hessian(loss, W, [X]), W), W
            ),
            r"must be one over a data set",
        ),
        (
            lambda: jax.jit(lambda w: curvature.spectral_density(curvature.hessian(loss, w, X), w, KEY))(W),
            r"cannot be traced .* use lanczos",
        ),
        (lambda: jax.jit(lambda w: curvature.critical_batch_size(loss, w, [X]))(W), r"cannot be traced"),
        (
            lambda: curvature.input_hessian(
                lambda w, b: jnp.sum(b["m"] * (b["image"] @ w) ** 2) / jnp.sum(b["m"]),
                W,
                {"image": jnp.arange(12.0).reshape(4, 3), "m": jnp.array([1.0, 1, 1, 0])},
            ),
            r"not the mean of those of its halves, .* `weight=`",
        ),
    ],
)
def test_what_was_no_number_or_no_sentence_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_outputs_that_are_no_numbers_with_a_derivative():
    def model(w, x):
        return {"logits": x @ w, "length": jnp.int32(3)}

    with pytest.raises(ValueError, match=r"outputs of `model_fn` .* got int32 at .*length.*has_aux=True"):
        curvature.gauss_newton(model, lambda outputs, x: jnp.mean(outputs["logits"] ** 2), W, X)(W)


@pytest.mark.parametrize(
    "call",
    [
        lambda matvec: curvature.lanczos(matvec, np.ones(4, np.float32), 4).num_iters,
        lambda matvec: curvature.eigsh(matvec, np.ones(4, np.float32)).eigenvalues,
    ],
)
def test_a_callable_that_closes_over_traced_values(call):
    with pytest.raises(ValueError, match="closes over traced values"):
        jax.jit(lambda scale: call(lambda v: scale * v))(1.0)


def test_a_landscape_under_a_trace():
    with pytest.raises(ValueError, match="landscape reads its losses in Python"):
        jax.jit(lambda w: curvature.landscape(loss, w, [X], [W], [np.zeros(1)]).values)(W)


def test_params_and_a_batch_that_a_traced_function_closes_over():
    """Nothing tells these from others but the loss, which is traced."""
    batch = {"image": np.ones((4, 2), np.float32)}

    def square(w, batch):
        return jnp.mean(jnp.sum(w * batch["image"] ** 2, axis=1))

    weights = np.array([1.0, 3.0], np.float32)
    product = jax.jit(lambda v: curvature.input_hessian(square, weights, batch)(v))(batch["image"])
    np.testing.assert_allclose(product, np.tile(2 * weights, (4, 1)))
    split = jax.jit(lambda v: curvature.hessian(loss, np.ones(3), X, linearize="auto", memory_budget=1)(v))(W)
    np.testing.assert_allclose(split, curvature.hessian(loss, W, X)(W), rtol=1e-6)


def test_a_mean_that_is_zero_is_a_mean():
    rng = np.random.default_rng(0)
    half = rng.standard_normal((32, 3)).astype(np.float32)
    images = np.concatenate([half, -half])[rng.permutation(64)]

    def critic(w, batch):
        return jnp.mean(jnp.tanh(batch["image"] @ w))

    assert curvature.input_hessian(critic, W, {"image": images})(images).shape == images.shape
    assert np.isfinite(
        jax.jit(lambda w: curvature.input_hessian(critic, w, {"image": images})(images))(W)
    ).all()
