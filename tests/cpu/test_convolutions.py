"""Kernel gradients cut along the batch: the same numbers, and nothing else is touched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.cpu.convolutions import in_parts, split_kernel_gradients

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

OPTIONS = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "valid": {"window_strides": (1, 1), "padding": "VALID"},
    "strided": {"window_strides": (2, 2), "padding": "SAME"},
    "dilated": {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 2)},
}
LAYOUTS = (("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"))


def _case(option, layout, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"NHWC": (70, 9, 8, 2), "NCHW": (70, 2, 9, 8)}, {"HWIO": (3, 3, 2, 4), "OIHW": (4, 2, 3, 3)}
    images, kernel = (
        jnp.asarray(rng.normal(size=s[n]), jnp.float32) for s, n in zip(shapes, layout[:2], strict=True)
    )

    def loss(kernel, images):
        features = jax.lax.conv_general_dilated(images, kernel, dimension_numbers=layout, **OPTIONS[option])
        return jnp.mean(jnp.tanh(features) ** 2)

    return loss, kernel, images


def _convolutions(program):
    return str(program).count("= conv_general_dilated")


@pytest.mark.parametrize(
    ("option", "layout"), [*zip(OPTIONS, (*LAYOUTS, *LAYOUTS), strict=True), ("strided", LAYOUTS[1])]
)
def test_gradient_in_parts_is_the_gradient(option, layout):
    loss, kernel, images = _case(option, layout)
    program = jax.make_jaxpr(jax.grad(loss))(kernel, images)
    split = split_kernel_gradients(program, examples=32)
    assert _convolutions(split) == _convolutions(program) + 2  # 70 = 32 + 32 + 6
    (want,), (got,) = (jax.jit(jax.extend.core.jaxpr_as_fun(p))(kernel, images) for p in (program, split))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_only_long_sums_are_cut():
    loss, kernel, images = _case("same", LAYOUTS[0])
    program = jax.make_jaxpr(jax.grad(loss))(kernel, images)
    assert split_kernel_gradients(program, examples=70) is program
    forward = jax.make_jaxpr(lambda x, k: jax.lax.conv(x, k, (1, 1), "SAME"))(
        jnp.ones((2, 100, 8, 8)), jnp.ones((3, 100, 3, 3))
    )
    assert split_kernel_gradients(forward, examples=32) is forward  # a hundred channels are no batch


def test_inside_loops_branches_and_calls():
    loss, kernel, images = _case("same", LAYOUTS[0])

    def descend(kernel, images):
        def step(kernel, rate):
            gradient = jax.jit(jax.grad(jax.checkpoint(loss)))
            kernel = jax.lax.cond(rate > 0, lambda k: k - rate * gradient(k, images), lambda k: k, kernel)
            return kernel, loss(kernel, images)

        return jax.lax.scan(step, kernel, jnp.array([0.5, 0.0, 0.25]))

    program = jax.make_jaxpr(descend)(kernel, images)
    split = split_kernel_gradients(program, examples=32)
    assert _convolutions(split) == _convolutions(program) + 2
    want, got = (jax.jit(jax.extend.core.jaxpr_as_fun(p))(kernel, images) for p in (program, split))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_function_of_trees_in_parts():
    loss, kernel, images = _case("same", LAYOUTS[0])

    def step(state, images):
        value, gradient = jax.value_and_grad(loss)(state["kernel"], images)
        return {"kernel": state["kernel"] - 0.1 * gradient, "count": state["count"] + 1}, value

    state = {"kernel": kernel, "count": jnp.zeros((), jnp.int32)}
    cut = jax.jit(in_parts(step))
    (want, want_value), (got, value) = step(state, images), cut(state, images)
    np.testing.assert_allclose(value, want_value, rtol=1e-6)
    np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=1e-5, atol=1e-7)
    assert int(got["count"]) == 1
    programs = (jax.make_jaxpr(f)(state, images) for f in (step, cut))
    plain, parts = map(_convolutions, programs)
    assert parts == plain + 2 * (jax.default_backend() == "cpu")  # 70 = 32 + 32 + 6


def test_other_backends_are_left_alone(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert in_parts(_case) is _case
