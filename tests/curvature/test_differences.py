"""Finite differences, and what is said where a kernel has no forward mode: only what works there."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas

from hessabs import curvature
from hessabs.curvature.differences import difference, rounding

pytestmark = pytest.mark.sampled


def _slope(x):
    return (1 - jnp.tanh(x) ** 2).astype(x.dtype)


def _on_host(function, x):
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")


def _kernel(forward, slope):
    """tanh as a kernel with its own backward pass; ``forward`` may be None for the kernel itself."""
    kernel = jax.custom_vjp(jnp.tanh if forward is None else forward)
    kernel.defvjp(lambda x: ((forward or kernel)(x), x), lambda x, g: (g * slope(x),))
    return kernel


KERNELS = {
    "plain": _kernel(jnp.tanh, _slope),  # forward mode in its backward pass, not in itself
    "calls itself": _kernel(None, _slope),
    "opaque": _kernel(
        lambda x: _on_host(np.tanh, x),
        lambda x: _on_host(lambda t: (1 - np.tanh(t) ** 2).astype(t.dtype), x),
    ),
}
# The modes that cannot work. All others must, and must give the right product.
BLOCKED = {
    "plain": {"gauss_newton": ["forward"], "hessian": []},
    "calls itself": {"gauss_newton": ["forward"], "hessian": ["forward_over_reverse"]},
    "opaque": {"gauss_newton": ["forward"], "hessian": ["forward_over_reverse", "reverse_over_reverse"]},
}
MODES = {
    "hessian": ["forward_over_reverse", "reverse_over_reverse", "finite_difference"],
    "gauss_newton": ["forward", "reverse", "finite_difference"],
}
W, X = jnp.array([0.3, -0.2]), jnp.array([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.3]])


def _make(which, kernel, mode):
    if which == "hessian":
        return curvature.hessian(lambda w, x: jnp.mean(kernel(x @ w) ** 2), W, X, mode=mode)
    return curvature.gauss_newton(lambda w, x: kernel(x @ w), lambda o, x: jnp.mean(o**2), W, X, mode=mode)


@pytest.mark.parametrize("which", MODES)
@pytest.mark.parametrize("name", KERNELS)
def test_exactly_the_modes_that_work_are_named(name, which):
    vector = jnp.array([1.0, -2.0])
    want = _make(which, jnp.tanh, MODES[which][0])(vector)
    working = [mode for mode in MODES[which] if mode not in BLOCKED[name][which]]
    for mode in working:
        np.testing.assert_allclose(_make(which, KERNELS[name], mode)(vector), want, rtol=2e-3)
    for mode in BLOCKED[name][which]:
        with pytest.raises(TypeError, match="custom_vjp") as caught:
            _make(which, KERNELS[name], mode)(vector)
        assert re.findall(r'mode="(\w+)"', str(caught.value)) == working


def test_a_kernel_in_the_loss_on_the_outputs(x64):
    w, x, v = (jnp.asarray(a, jnp.float64) for a in (W, X, [1.0, -2.0]))
    model = lambda w, x: x @ w  # noqa: E731
    want = curvature.gauss_newton(model, lambda o, x: jnp.mean(jnp.tanh(o) ** 2), w, x)(v)
    for name, kernel in KERNELS.items():
        loss = lambda o, x, kernel=kernel: jnp.mean(kernel(o) ** 2)  # noqa: E731
        got = curvature.gauss_newton(model, loss, w, x, mode="finite_difference")(v)
        np.testing.assert_allclose(got, want, rtol=1e-8, err_msg=name)


def test_an_error_of_the_loss_is_no_matter_of_the_mode():
    def loss(w, x):
        raise KeyError("label")

    with pytest.raises(KeyError, match="label"):
        curvature.hvp(loss, W, X, W)


def _network(dtype):
    """Mean loss and logits of a network with float32 params and products in ``dtype``."""

    def model(params, x):
        for layer in ("a", "b"):
            x = jax.nn.gelu((x.astype(dtype) @ params[layer].astype(dtype)).astype(jnp.float32))
        return (x.astype(dtype) @ params["c"].astype(dtype)).astype(jnp.float32)

    def loss(params, x):
        return output_loss(model(params, x), x)

    def output_loss(outputs, x):
        log_p = jax.nn.log_softmax(outputs)
        return -jnp.mean(log_p[jnp.arange(len(x)), jnp.arange(len(x)) % 3])

    return model, loss, output_loss


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["random", "top"])
@pytest.mark.parametrize("which", MODES)
def test_the_step_follows_the_dtype_of_the_products(which, direction):
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 32), "b": (32, 32), "c": (32, 3)}
    params = {k: jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), jnp.float32) for k, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)

    def make(dtype, **options):
        model, loss, output_loss = _network(dtype)
        if which == "hessian":
            return curvature.hessian(loss, params, x, **options)
        return curvature.gauss_newton(model, output_loss, params, x, **options)

    exact = make(jnp.float32)
    vector = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}
    if direction == "top":
        vector = curvature.power_iteration(exact, vector, max_iters=10).eigenvector
    want = _flat(exact(vector))

    def error(dtype, **options):
        got = make(dtype, mode="finite_difference", **options)(vector)
        return np.linalg.norm(_flat(got) - want) / np.linalg.norm(want)

    assert error(jnp.float32) < 1e-3
    assert error(jnp.bfloat16) < 0.1
    if direction == "random":
        assert error(jnp.bfloat16, step=0.006) > 0.3  # a step for float32
    assert error(jnp.bfloat16, step=0.1 if direction == "top" else 0.5) < 0.05


def test_the_step_is_the_distance_to_either_side():
    operator = curvature.hessian(lambda w, x: w**4, jnp.float32(2), None, mode="finite_difference", step=0.5)
    # (4 (w + h)^3 - 4 (w - h)^3) / 2 h = 12 w^2 + 4 h^2, whatever the length of the vector.
    np.testing.assert_allclose(operator(jnp.float32(3)), 3 * (12 * 4 + 4 * 0.25), rtol=1e-6)
    np.testing.assert_array_equal(operator(jnp.float32(0)), 0)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_params_of_any_scale(scale):
    operator = curvature.hessian(
        lambda w, x: jnp.sum((w / scale) ** 4), scale * jnp.ones(5), None, mode="finite_difference"
    )
    np.testing.assert_allclose(operator(jnp.ones(5)), 12 / scale**2, rtol=1e-2)


def test_low_precision_is_found_inside_loops_and_kernels():
    def half(x):
        return (x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16)).astype(jnp.float32)

    def body(x_ref, out_ref):
        out_ref[...] = half(x_ref[...])

    x = jnp.ones((16, 16))
    in_kernel = pallas.pallas_call(body, jax.ShapeDtypeStruct(x.shape, x.dtype), interpret=True)
    in_loop = lambda x: jax.lax.scan(lambda c, _: (half(c), None), x, length=2)[0]  # noqa: E731
    for function, want in ((in_kernel, 2**-7), (in_loop, 2**-7), (lambda x: x @ x, 2**-23)):
        assert rounding(jax.make_jaxpr(function)(x).jaxpr, x) == want
    assert rounding(jax.make_jaxpr(lambda x: x)(x).jaxpr, x.astype(jnp.float16)) == 2**-10


def test_outputs_of_any_structure():
    derivative = difference(lambda x: {"square": x**2, "sum": jnp.sum(x)}, jnp.array([1.0, 2.0]), None)
    got = derivative(jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(got["square"], [2, 4], rtol=1e-3)
    np.testing.assert_allclose(got["sum"], 2, rtol=1e-3)


def test_bad_steps_are_refused():
    loss = lambda w, x: jnp.sum(w**2)  # noqa: E731
    for step in (0, -1.0, float("nan"), "auto"):
        with pytest.raises(ValueError, match="`step` must be a positive number, got"):
            curvature.hessian(loss, W, X, mode="finite_difference", step=step)
    with pytest.raises(ValueError, match=r"got mode='reverse_over_reverse' and step=0\.1"):
        curvature.hessian(loss, W, X, mode="reverse_over_reverse", step=0.1)
    with pytest.raises(ValueError, match="needs a derivative"):
        curvature.gauss_newton(loss, loss, W, X, mode="finite_difference", linearize=True)


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)
