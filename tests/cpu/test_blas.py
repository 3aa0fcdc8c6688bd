"""The solvers use one BLAS thread beside an operator of JAX, and all of them beside another."""

import jax
import jax.numpy as jnp
import pytest
import threadpoolctl
from jax.tree_util import Partial

from hessabs.curvature import eigsh, lanczos, trace

SOLVERS = {
    "eigsh": lambda matvec: eigsh(matvec, jnp.ones(8), 2, loop="host"),
    "lanczos": lambda matvec: lanczos(matvec, jnp.ones(8), 3, loop="host"),
    "trace": lambda matvec: trace(matvec, jnp.ones(8), jax.random.key(0), num_matvecs=6, method="hutch++"),
}


def blas_threads():
    found = threadpoolctl.ThreadpoolController().select(user_api="blas").info()
    assert found
    return {library["num_threads"] for library in found}


@pytest.mark.parametrize("name", SOLVERS)
def test_threads_beside_an_operator(name):
    seen = []

    def multiply(scale, vector):
        return jax.pure_callback(see, jax.ShapeDtypeStruct((8,), jnp.float32), scale, vector)

    def see(scale, vector):
        seen.append(blas_threads())
        return scale * vector

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        SOLVERS[name](Partial(multiply, jnp.arange(8.0)))
        assert blas_threads() == before
    assert seen
    assert all(threads == {1} for threads in seen)


@pytest.mark.parametrize("name", SOLVERS)
def test_threads_beside_a_function_of_the_user(name):
    seen = []

    def matvec(vector):
        seen.append(blas_threads())
        return jnp.arange(8.0) * vector

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        SOLVERS[name](matvec)
    assert seen
    assert all(threads == before for threads in seen)
