"""Products and operators against the dense matrix of ``jax.hessian``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

import hessabs
from hessabs import curvature

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

NETWORKS = ("mlp", "conv", "tied")


def test_hvp_is_the_dense_hessian_times_the_vector(x64, make_problem, dense_hessian, random_like):
    problem = make_problem("conv", jnp.float64)
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


def test_frozen_leaves_bound_by_partial_are_no_part_of_the_hessian(x64, make_problem, dense_hessian, to_dense):
    problem = make_problem("mlp", jnp.float64)

    def loss(frozen, trained, batch):
        return problem.loss_fn({**frozen, **trained}, batch)

    frozen, trained = {"hidden": problem.params["hidden"]}, {"head": problem.params["head"]}
    operator = hessabs.hessian(Partial(loss, frozen), trained, problem.batch, linearize=True)
    # "head" sorts before "hidden": its block leads the dense matrix.
    size = _flat(trained).size
    want = dense_hessian(problem.loss_fn, problem.params, problem.batch)[:size, :size]
    np.testing.assert_allclose(to_dense(operator, trained), want, rtol=1e-10, atol=1e-12)


def test_bfloat16_params_give_bfloat16_products(make_problem, dense_hessian, random_like):
    problem = make_problem("mlp", jnp.bfloat16)
    vector = random_like(problem.params)
    got = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=True)(vector)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), problem.params)
    want = dense_hessian(problem.loss_fn, wide, problem.batch) @ _flat(vector)
    assert np.linalg.norm(_flat(got) - want) < 0.03 * np.linalg.norm(want)


@pytest.mark.parametrize("linearize", [False, True])
def test_new_params_and_batches_retrace_nothing(make_problem, random_like, linearize):
    problem, other = make_problem("mlp"), make_problem("mlp", seed=1)
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


@pytest.mark.parametrize(
    ("mapping", "linearize"),
    [("vmap", False), ("vmap", True), ("pmap", True), ("shard_map", True), ("shard_map_unchecked", False)],
)
def test_mapped_axis_gives_the_product_of_the_whole_batch(
    make_problem, random_like, mapping, linearize, request
):
    num = 4
    if mapping != "vmap":
        request.getfixturevalue("four_devices")
    problem = make_problem("mlp")
    vector = random_like(problem.params)

    def product(params, batch, vector):
        operator = hessabs.hessian(problem.loss_fn, params, batch, linearize=linearize, axis_name="shards")
        return operator(vector)

    split = jax.tree.map(lambda x: x.reshape(num, -1, *x.shape[1:]), problem.batch)
    if mapping in ("vmap", "pmap"):
        options = {"axis_name": "shards", "in_axes": (None, 0, None)}
        mapped = jax.jit(jax.vmap(product, **options)) if mapping == "vmap" else jax.pmap(product, **options)
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
    problem = make_problem("mlp")
    vector = random_like(problem.params)
    twice = [
        _flat(jax.jit(hessabs.hessian(problem.loss_fn, problem.params, problem.batch, linearize=True))(vector))
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*twice)


def test_vector_of_another_structure_is_refused_with_the_path(make_problem):
    problem = make_problem("mlp")
    operator = hessabs.hessian(problem.loss_fn, problem.params, problem.batch)
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


@jax.custom_vjp
def _swish(x):
    return x * jax.nn.sigmoid(x)


# The usual slip: the forward pass calls the function itself, whose forward mode is then asked for.
_swish.defvjp(lambda x: (_swish(x), x), lambda x, g: (g * (jax.nn.sigmoid(x) * (1 + x * jax.nn.sigmoid(-x))),))


def _blocked_loss(w, x):
    return jnp.mean(_swish(x @ w) ** 2)


def _free_loss(w, x):
    return jnp.mean(jax.nn.silu(x @ w) ** 2)


@pytest.mark.parametrize("linearize", [False, True])
def test_custom_vjp_that_blocks_forward_mode_says_what_to_do(linearize):
    with pytest.raises(TypeError, match=r"custom_vjp.*mode=\"reverse_over_reverse\""):
        hessabs.hessian(_blocked_loss, jnp.ones(3), jnp.ones((2, 3)), linearize=linearize)(jnp.ones(3))


@pytest.mark.parametrize(("mode", "rtol"), [("reverse_over_reverse", 1e-12), ("finite_difference", 1e-8)])
def test_modes_that_pass_a_custom_vjp_agree_with_the_exact_product(x64, random_like, mode, rtol):
    w, x, v = (random_like(jnp.ones(s), i) for i, s in enumerate([(3,), (5, 3), (3,)]))
    want = hessabs.hvp(_free_loss, w, x, v)
    for linearize in (False, "auto", True)[: 3 if mode == "reverse_over_reverse" else 2]:
        got = hessabs.hessian(_blocked_loss, w, x, mode=mode, linearize=linearize)(v)
        assert np.linalg.norm(got - want) <= rtol * np.linalg.norm(want)


def test_finite_differences_in_float32_keep_three_digits(make_problem, random_like):
    problem = make_problem("mlp")
    vector = random_like(problem.params)
    want = _flat(hessabs.hvp(problem.loss_fn, problem.params, problem.batch, vector))
    operator = hessabs.hessian(problem.loss_fn, problem.params, problem.batch, mode="finite_difference")
    assert np.linalg.norm(_flat(operator(vector)) - want) < 2e-3 * np.linalg.norm(want)
    np.testing.assert_array_equal(_flat(operator(jax.tree.map(jnp.zeros_like, vector))), 0)


def test_input_hessian_is_block_diagonal(x64, make_problem, to_dense):
    problem = make_problem("mlp", jnp.float64, num_examples=3)
    images = problem.batch["image"]
    dense = jax.jit(jax.hessian(lambda x, one: problem.loss_fn(problem.params, {**one, "image": x})))
    for linearize in (False, True):
        operator = curvature.input_hessian(problem.loss_fn, problem.params, problem.batch, linearize=linearize)
        got = to_dense(operator, images).reshape(3, 16, 3, 16).copy()
        for i in range(3):
            one = {"image": images[i : i + 1], "label": problem.batch["label"][i : i + 1]}
            want = dense(one["image"], one).reshape(16, 16)
            np.testing.assert_allclose(got[i, :, i, :], want, rtol=1e-9, atol=1e-12)
            got[i, :, i, :] = 0
        np.testing.assert_allclose(got, 0, atol=1e-12)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"`mode` must be one of forward_over_reverse, .* got 'fast'"):
        hessabs.hessian(_free_loss, jnp.ones(3), jnp.ones((2, 3)), mode="fast")
    with pytest.raises(ValueError, match="`linearize` must be True, False or \"auto\", got 'maybe'"):
        hessabs.hessian(_free_loss, jnp.ones(3), jnp.ones((2, 3)), linearize="maybe")
    with pytest.raises(ValueError, match="`memory_budget` must be positive, in bytes, got 0"):
        hessabs.hessian(_free_loss, jnp.ones(3), jnp.ones((2, 3)), memory_budget=0)
    with pytest.raises(ValueError, match="needs a derivative"):
        hessabs.hessian(_free_loss, jnp.ones(3), jnp.ones((2, 3)), mode="finite_difference", linearize=True)
    with pytest.raises(ValueError, match="at least one array, got an empty pytree"):
        hessabs.hessian(_free_loss, {}, jnp.ones((2, 3)))


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


def test_the_hessian_of_a_large_batch(make_problem, random_like):
    problem = make_problem("conv", num_examples=150)
    operator = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    vector = random_like(problem.params)
    gradient = jax.grad(lambda p: problem.loss_fn(p, problem.batch))
    want = jax.jit(lambda v: jax.jvp(gradient, (problem.params,), (v,))[1])(vector)
    for a, b in zip(jax.tree.leaves(operator(vector)), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    if jax.default_backend() == "cpu":
        plain = jax.make_jaxpr(lambda v: jax.jvp(gradient, (problem.params,), (v,))[1])(vector)
        programs = [str(p).count("= conv_general_dilated") for p in (jax.make_jaxpr(operator)(vector), plain)]
        assert programs[0] > programs[1]  # kernel gradients are cut along the batch
