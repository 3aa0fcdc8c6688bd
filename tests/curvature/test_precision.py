"""Matrix products of curvature ask an accelerator for full precision, unless the user asks for another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.tree_util import Partial

from hessabs import curvature, trees
from hessabs.curvature import basis

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

PARAMS = {"w": jnp.ones((3, 4)), "v": jnp.ones((4, 2))}
BATCH = jnp.ones((5, 3))


def loss(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["w"]) @ params["v"])


def convolving_loss(params, batch):
    image = batch.reshape(1, 5, 3, 1)
    kernel = params["w"].reshape(1, 3, 1, 4)
    out = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.mean(jnp.tanh(out) @ params["v"])


def precisions(function, *args):
    """The precision of every product in a function, inner functions included."""

    def of(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                yield str(eqn.params["precision"])
            for inner in jaxprs_in_params(eqn.params):
                yield from of(inner)

    found = set(of(jax.make_jaxpr(function)(*args).jaxpr))
    assert found
    return found


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


OPERATORS = {
    "hessian": lambda: curvature.hessian(loss, PARAMS, BATCH),
    "linearised": lambda: curvature.hessian(loss, PARAMS, BATCH, linearize=True),
    "convolution": lambda: curvature.hessian(convolving_loss, PARAMS, BATCH),
    "reverse": lambda: curvature.hessian(loss, PARAMS, BATCH, mode="reverse_over_reverse"),
    "gauss_newton": lambda: curvature.gauss_newton(
        lambda p, b: jnp.tanh(b @ p["w"]) @ p["v"], lambda y, b: jnp.mean(y**2), PARAMS, BATCH
    ),
    "restricted": lambda: curvature.restrict(curvature.hessian(loss, PARAMS, BATCH), PARAMS, lambda path: True),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_ask_for_it(accelerator, name):
    operator = OPERATORS[name]()
    vector = jax.tree.map(jnp.ones_like, PARAMS)
    got = precisions(lambda v: operator(v), vector)
    assert all("HIGHEST" in precision for precision in got), got


def test_hvp_and_last_layer_ask_for_it(accelerator):
    vector = jax.tree.map(jnp.ones_like, PARAMS)
    assert "None" not in precisions(lambda v: curvature.hvp(loss, PARAMS, BATCH, v), vector)
    head = {"kernel": jnp.ones((3, 2))}
    operator = curvature.last_layer(lambda x: x, head, BATCH)
    assert "None" not in precisions(lambda v: operator(v), head)


def test_combining_a_krylov_basis_asks_for_it(accelerator):
    # Making one orthogonal multiplies and adds, without a matrix product.
    got = precisions(lambda rows: basis.combine(rows, np.ones((2, 3))), jnp.eye(4)[:3])
    assert all("HIGHEST" in precision for precision in got), got


def test_another_precision_of_the_user_holds(accelerator):
    vector = jax.tree.map(jnp.ones_like, PARAMS)
    with jax.default_matmul_precision("high"):
        got = precisions(lambda v: curvature.hvp(loss, PARAMS, BATCH, v), vector)
    assert all("HIGH" in precision and "HIGHEST" not in precision for precision in got), got


def test_cpus_are_asked_for_nothing():
    vector = jax.tree.map(jnp.ones_like, PARAMS)
    own = lambda params, batch: loss(params, batch)  # noqa: E731  no program was made for it yet
    assert precisions(lambda v: curvature.hvp(own, PARAMS, BATCH, v), vector) == {"None"}


def test_a_deflated_operator_asks_for_it(accelerator):
    found = jnp.zeros((2, 3))
    matvec = Partial(jnp.multiply, jnp.arange(3.0))
    run = lambda v0: curvature.deflated_power_iteration(matvec, v0, max_iters=3)  # noqa: E731
    assert "None" not in precisions(run, trees.normal_like(jax.random.key(0), found))
