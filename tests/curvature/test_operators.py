"""Products and operators against the dense matrix of ``jax.hessian``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

import hessabs

NETWORKS = ("mlp", "conv", "tied")


@pytest.mark.parametrize("network", NETWORKS)
def test_hvp_is_the_dense_hessian_times_the_vector(x64, make_problem, dense_hessian, random_like, network):
    problem = make_problem(network, jnp.float64)
    vector = random_like(problem.params)
    got = hessabs.hvp(problem.loss_fn, problem.params, problem.batch, vector)
    want = dense_hessian(problem.loss_fn, problem.params, problem.batch) @ _flat(vector)
    np.testing.assert_allclose(_flat(got), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("linearize", [False, True])
@pytest.mark.parametrize("network", NETWORKS)
def test_hessian_is_the_dense_hessian(x64, make_problem, dense_hessian, to_dense, network, linearize):
    problem = make_problem(network, jnp.float64)
    operator = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
    want = dense_hessian(problem.loss_fn, problem.params, problem.batch)
    np.testing.assert_allclose(to_dense(operator, problem.params), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("linearize", [False, True])
def test_frozen_leaves_bound_by_partial_are_no_part_of_the_hessian(
    x64, make_problem, dense_hessian, to_dense, linearize
):
    problem = make_problem("mlp", jnp.float64)

    def loss(frozen, trained, batch):
        return problem.loss_fn({**frozen, **trained}, batch)

    frozen, trained = {"hidden": problem.params["hidden"]}, {"head": problem.params["head"]}
    operator = hessabs.hessian(Partial(loss, frozen), trained, problem.batch, linearize=linearize)
    # "head" sorts before "hidden": its block leads the dense matrix.
    size = _flat(trained).size
    want = dense_hessian(problem.loss_fn, problem.params, problem.batch)[:size, :size]
    np.testing.assert_allclose(to_dense(operator, trained), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("linearize", [False, True])
def test_bfloat16_params_give_bfloat16_products(make_problem, dense_hessian, random_like, linearize):
    problem = make_problem("mlp", jnp.bfloat16)
    vector = random_like(problem.params)
    got = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)(vector)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), problem.params)
    want = dense_hessian(problem.loss_fn, wide, problem.batch) @ _flat(vector)
    assert np.linalg.norm(_flat(got) - want) < 0.03 * np.linalg.norm(want)


@pytest.mark.parametrize("linearize", [False, True])
def test_new_params_and_batches_retrace_nothing(make_problem, random_like, linearize):
    problem, other = make_problem("conv"), make_problem("conv", seed=1)
    traces = {"loss": 0, "consumer": 0}

    def loss(params, batch):
        traces["loss"] += 1
        return problem.loss_fn(params, batch)

    @jax.jit
    def consumer(operator, vector):
        traces["consumer"] += 1
        return operator(vector)

    vector = random_like(problem.params)
    first = consumer(hessabs.hessian(loss, problem.params, problem.batch, linearize=linearize), vector)
    counted = dict(traces)
    second = consumer(hessabs.hessian(loss, other.params, other.batch, linearize=linearize), vector)
    assert traces == counted
    assert traces["consumer"] == 1
    want = hessabs.hvp(problem.loss_fn, other.params, other.batch, vector)
    np.testing.assert_allclose(_flat(second), _flat(want), rtol=2e-5, atol=1e-6)
    assert np.linalg.norm(_flat(first) - _flat(second)) > 1e-3


@pytest.mark.parametrize("linearize", [False, True])
def test_operator_is_linear_and_symmetric(x64, make_problem, random_like, linearize):
    problem = make_problem("conv", jnp.float64)
    operator = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
    u, v = random_like(problem.params, 1), random_like(problem.params, 2)
    combined = operator(jax.tree.map(lambda a, b: 2 * a - 3 * b, u, v))
    np.testing.assert_allclose(_flat(combined), 2 * _flat(operator(u)) - 3 * _flat(operator(v)), atol=1e-12)
    np.testing.assert_allclose(_flat(u) @ _flat(operator(v)), _flat(v) @ _flat(operator(u)), rtol=1e-10)


@pytest.mark.parametrize("mapping", ["vmap", "pmap", "shard_map", "shard_map_unchecked"])
@pytest.mark.parametrize("linearize", [False, True])
def test_mapped_axis_gives_the_product_of_the_whole_batch(make_problem, random_like, mapping, linearize):
    num = 4
    assert mapping == "vmap" or jax.device_count() >= num, "the tests need 4 devices: JAX_NUM_CPU_DEVICES=4"
    problem = make_problem("mlp")
    vector = random_like(problem.params)

    def product(params, batch, vector):
        operator = hessabs.hessian(problem.loss_fn, params, batch, linearize=linearize, axis_name="shards")
        return operator(vector)

    split = jax.tree.map(lambda x: x.reshape(num, -1, *x.shape[1:]), problem.batch)
    if mapping in ("vmap", "pmap"):
        mapper = jax.vmap if mapping == "vmap" else jax.pmap
        mapped = mapper(product, axis_name="shards", in_axes=(None, 0, None))
        got = jax.tree.map(lambda x: x[-1], mapped(problem.params, split, vector))
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:num]), ("shards",))
        whole, shards = PartitionSpec(), PartitionSpec("shards")
        mapped = jax.shard_map(
            product,
            mesh=mesh,
            in_specs=(whole, shards, whole),
            out_specs=whole,
            check_vma=mapping == "shard_map",
        )
        got = jax.jit(mapped)(problem.params, problem.batch, vector)
    want = hessabs.hvp(problem.loss_fn, problem.params, problem.batch, vector)
    np.testing.assert_allclose(_flat(got), _flat(want), rtol=2e-5, atol=1e-6)


def test_twice_gives_the_same_bits(make_problem, random_like):
    problem = make_problem("conv")
    vector = random_like(problem.params)
    twice = [
        _flat(jax.jit(hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=True))(vector))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*twice)


@pytest.mark.parametrize("linearize", [False, True])
def test_vector_of_another_structure_is_refused_with_the_path(make_problem, linearize):
    problem = make_problem("mlp")
    operator = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
    wrong = {**problem.params, "hidden": {**problem.params["hidden"], "bias": jnp.zeros(7)}}
    with pytest.raises(ValueError, match=r"\['hidden'\]\['bias'\].*float32\[7\].*float32\[5\]"):
        operator(wrong)
    with pytest.raises(ValueError, match=r"\['head'\]\['bias'\].*nothing"):
        operator({"hidden": problem.params["hidden"]})


@pytest.mark.parametrize("linearize", [False, True])
def test_integer_leaf_is_refused(linearize):
    params = {"w": jnp.ones(2), "steps": jnp.zeros((), jnp.int32)}
    with pytest.raises(ValueError, match=r"floating-point arrays, got int32 at \['steps'\]"):
        hessabs.hessian(lambda p, b: jnp.sum(p["w"]), params, None, linearize=linearize)


def test_loss_that_is_no_scalar_is_refused():
    with pytest.raises(ValueError, match=r"scalar, the mean over the batch, got shape \(2,\)"):
        hessabs.hvp(lambda w, b: w**2, jnp.ones(2), None, jnp.ones(2))
    with pytest.raises(ValueError, match=r"scalar, the mean over the batch, got shape \(2,\)"):
        hessabs.hessian(lambda w, b: w**2, jnp.ones(2), None, linearize=True)


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)
