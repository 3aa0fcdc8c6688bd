"""What a layer is in the params of every library; layer tables, batch spectra and the debiased eigenvalue."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from hessabs import batch_axis, curvature, paths
from hessabs.curvature.layers import Layer, output_axes, stack_axes
from tests.curvature import models

pytestmark = pytest.mark.sampled


def test_layer_table_describes_the_dense_blocks(dense_hessian):
    rng = np.random.default_rng(0)
    params = {name: {"w": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)} for name in ("body", "head")}
    loss_fn = lambda p, x: jnp.mean((jnp.tanh(x @ p["body"]["w"]) @ p["head"]["w"] - x) ** 2)  # noqa: E731
    table = curvature.layer_table(
        curvature.hessian(loss_fn, params, models.X), params, jax.random.key(0), rtol=1e-3, num_probes=20
    )
    assert [row.layer for row in table] == ["body", "head"]
    matrices = dense_hessian(loss_fn, params, models.X).reshape(2, 9, 2, 9)
    for i, row in enumerate(table):
        matrix = matrices[i, :, i]
        values = np.linalg.eigvalsh(matrix)
        assert row.num_params == len(matrix)
        assert row.converged
        np.testing.assert_allclose([row.smallest, row.largest], values[[0, -1]], atol=1e-3 * values[-1])
        assert abs(float(row.trace.value) - np.trace(matrix)) < 4 * float(row.trace.standard_error)
        error = abs(float(row.frobenius_norm.value) - np.linalg.norm(matrix))
        assert error < 4 * float(row.frobenius_norm.standard_error)


@pytest.mark.slow
def test_batch_spectra_are_those_of_each_batch(make_problem, dense_hessian):
    problem = make_problem("mlp", num_examples=14)
    batches = [jax.tree.map(lambda x, i=i: x[i : i + 4], problem.batch) for i in (0, 4, 8)]
    batches.append(jax.tree.map(lambda x: x[12:], problem.batch))
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    spectra = curvature.batch_spectra(loss, problem.params, iter(batches), problem.params, 3, rtol=1e-4)
    assert len(traces) == 2  # one for each shape
    assert spectra.converged.all()
    np.testing.assert_array_equal(spectra.weights, [4, 4, 4, 2])
    for values, batch in zip(spectra.eigenvalues, batches, strict=True):
        want = np.linalg.eigvalsh(dense_hessian(problem.loss_fn, problem.params, batch))[::-1][:3]
        np.testing.assert_allclose(values, want, rtol=1e-3)
    with pytest.raises(ValueError, match="The data set is empty"):
        curvature.batch_spectra(loss, problem.params, [], problem.params)


def test_two_batches_remove_the_upward_bias():
    # Gaussian inputs of a linear model: the true Hessian is 2 I; a small batch has a larger top eigenvalue.
    def loss(w, x):
        return jnp.mean((x @ w) ** 2)

    biased, debiased = [], []
    for i in range(40):
        a, b = jax.random.normal(jax.random.key(i), (2, 20, 10))
        result = curvature.debiased_eigenvalue(loss, jnp.zeros(10), a, b, jnp.ones(10), max_iters=50)
        across = 2 * np.mean((np.asarray(b) @ np.asarray(result.eigenvector)) ** 2)
        np.testing.assert_allclose(result.eigenvalue, across, rtol=1e-4)
        biased.append(float(result.biased))
        debiased.append(float(result.eigenvalue))
    assert np.mean(biased) > 3.5
    assert abs(np.mean(debiased) - 2) < 4 * np.std(debiased) / np.sqrt(40)


LAYERS = {
    "linen": ["LayerNorm_0", "body", "head"],
    "boxed": ["LayerNorm_0", "body", "head"],
    "nnx": ["body", "head", "norm"],
    "equinox": ["body", "norm", "head"],
    "haiku": ["body", "head/~/linear_0", "norm"],
    "scanned": ["head", "steps/Dense_0", "steps/LayerNorm_0"],
}
WEIGHT = {"haiku": "w", "equinox": "weight"}


@pytest.mark.parametrize("library", LAYERS)
def test_layers_of_every_library(library):
    params, _ = models.make(library)
    found = curvature.layers(params)
    assert list(found) == LAYERS[library]
    assert all(len(layer.paths) == 2 for layer in found.values())  # a matrix or scale, and a bias or offset
    assert sorted(path for layer in found.values() for path in layer.paths) == sorted(paths.paths(params))
    head = next(name for name in found if name.startswith("head"))
    assert f"{head}/{WEIGHT.get(library, 'kernel')}" in found[head].paths


def test_a_layer_that_is_called_value_is_no_box():
    model = nn.MultiHeadDotProductAttention(
        1, kernel_init=nn.with_partitioning(nn.initializers.ones, (None,) * 3)
    )
    params = jax.eval_shape(model.init, models.KEY, models.X[None])["params"]
    assert list(curvature.layers(params)) == ["key", "out", "query", "value"]
    assert curvature.layers(params)["value"].paths == ("value/bias", "value/kernel")


def test_plain_params_and_single_layers():
    one, two = jnp.ones(2), jnp.ones((2, 2))
    assert list(curvature.layers({"w": two, "b": one})) == ["root"]
    assert list(curvature.layers({"w1": two, "b1": one})) == ["b1", "w1"]
    assert list(curvature.layers([(two, one), (two, one)])) == ["0", "1"]
    assert list(curvature.layers({"net.0.weight": two, "net.0.bias": one, "net.2.weight": two})) == [
        "net.0",
        "net.2",
    ]
    assert list(curvature.layers(eqx.nn.Linear(2, 2, key=models.KEY))) == ["root"]
    assert list(curvature.layers({"a": {"w": two}, "empty": {"w": jnp.ones((0, 2))}})) == ["a"]
    assert list(curvature.layers(two)) == [""]


def test_the_word_of_the_caller_holds():
    params, _ = models.make("scanned")
    whole = curvature.layers(params, ["steps"])
    assert list(whole) == ["steps"]
    assert len(whole["steps"].paths) == 4
    by_kind = curvature.layers(params, lambda path: "kernels" if path.endswith("kernel") else None)
    assert by_kind == {"kernels": Layer("kernels", ("head/kernel", "steps/Dense_0/kernel"))}
    assert list(curvature.layers(params, ["steps", "head"], stacked="steps")) == [
        "head",
        "steps[0]",
        "steps[1]",
        "steps[2]",
    ]


def test_boxes_may_name_the_axis_of_layers():
    def box(x, *names):
        return nn.Partitioned(x, names=names)

    params = {
        "a": {"kernel": box(jnp.ones((2, 3, 4)), None, "layers", None), "bias": jnp.ones((2, 3))},
        "b": {"kernel": box(jnp.ones((2, 4)), None, None)},
    }
    assert list(curvature.layers(params)) == ["a[0]", "a[1]", "a[2]", "b"]
    assert curvature.layers(params)["a[1]"] == Layer("a[1]", ("a/bias", "a/kernel"), 1, 1)
    state = nnx.state({"w": nnx.Param(jnp.ones((2, 3)), out_sharding=("layers", None), eager_sharding=False)})
    assert stack_axes(state) == [0]


@pytest.mark.parametrize(
    "library",
    ["equinox", *(pytest.param(name, marks=pytest.mark.slow) for name in ("linen", "boxed", "nnx", "haiku"))],
)
@pytest.mark.slow
def test_blocks_of_every_library_are_those_of_the_dense_hessian(x64, dense_hessian, to_dense, library):
    params, model_fn = models.make(library)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    loss, x = models.loss_of(model_fn), models.X.astype(jnp.float64)
    matrix, offset = dense_hessian(loss, params, x), 0
    operator = curvature.hessian(loss, params, x)
    for layer in curvature.layers(params).values():
        like = curvature.block_params(params, layer)
        end = offset + sum(x.size for x in jax.tree.leaves(like))
        want = matrix[offset:end, offset:end]
        got = to_dense(curvature.restrict(operator, params, layer), like)
        np.testing.assert_allclose(got, want, atol=1e-10)
        offset = end
    assert offset == len(matrix)


@functools.cache
def stack():
    """Three layers in one, in float64: params, loss and batch."""
    params, model_fn = models.make("scanned")
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    return params, models.loss_of(model_fn), models.X.astype(jnp.float64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "linearised", "data set", "callable"])
def test_every_layer_of_a_stack_has_its_own_block(x64, dense_hessian, to_dense, kind):
    params, loss, x = stack()
    operator = curvature.hessian(loss, params, x, linearize=kind == "linearised")
    if kind == "data set":
        # The labels go by the places of the rows.
        operator = curvature.dataset_hessian(loss, params, [x], weight=batch_axis.num_examples)
    if kind == "callable":
        operator = lambda v: curvature.hvp(loss, params, x, v)  # noqa: E731
    matrix = dense_hessian(loss, params, x)
    place = jax.tree.map(lambda x: np.zeros(x.shape), params)
    found = curvature.layers(params, stacked="steps")
    assert [name for name in found if "Dense" in name] == [f"steps/Dense_0[{i}]" for i in range(3)]
    layer = found["steps/Dense_0[1]"]
    for leaf in place["steps"]["Dense_0"].values():
        leaf[1] = 1
    rows = np.flatnonzero(jax.flatten_util.ravel_pytree(place)[0])
    like = curvature.block_params(params, layer)
    assert like["steps"]["Dense_0"]["kernel"].shape == (3, 3)
    block = curvature.restrict(operator, params, layer)
    columns = [block(unit) for unit in _units(like)] if kind == "data set" else None
    got = to_dense(block, like) if columns is None else np.stack([_flat(c) for c in columns], 1)
    np.testing.assert_allclose(got, matrix[np.ix_(rows, rows)], atol=1e-10)


def test_the_last_layer_has_the_outputs_asked_for():
    params = {f"Dense_{i}": {"kernel": jnp.ones((i, 3)), "bias": jnp.ones(3)} for i in (2, 9, 10)}
    params["embedding"] = jnp.ones((3, 5))
    assert curvature.last_layer_path(params, 3) == "Dense_10"
    for library, want in (("linen", "head"), ("equinox", "head"), ("haiku", "head/~/linear_0")):
        assert curvature.last_layer_path(models.make(library)[0], 2) == want
    with pytest.raises(ValueError, match="not known: no matrix with 7 outputs"):
        curvature.last_layer_path(params, 7)


def test_the_layers_of_a_stack_share_one_program():
    params, model_fn = models.make("scanned")
    traces = []

    def loss(p, x):
        traces.append(1)
        return models.loss_of(model_fn)(p, x)

    operator = curvature.hessian(loss, params, models.X)
    for layer in list(curvature.layers(params, ["steps"], stacked="steps").values()):
        curvature.restrict(operator, params, layer)(curvature.block_params(params, layer))
    assert len(traces) == 1


def test_output_axes_of_every_library():
    for library, kernel, norm in [
        ("linen", 1, None),
        ("nnx", 1, None),
        ("haiku", 1, None),
        ("equinox", 0, None),
    ]:
        params, _ = models.make(library)
        axes = dict(zip(paths.paths(params), output_axes(params), strict=True))
        assert {
            axis for path, axis in axes.items() if path.endswith(("kernel", "/w", "y/weight", "d/weight"))
        } == {kernel}, library
        assert {axis for path, axis in axes.items() if "orm" in path} == {norm}
    convolution = eqx.nn.Conv2d(2, 3, 2, key=models.KEY)  # its bias has shape (3, 1, 1)
    assert output_axes(convolution) == [0, None]
    assert output_axes({"weight": jnp.ones((3, 2))}) == [1]  # a dict is no certain sign of PyTorch
    assert output_axes({"weight": jnp.ones((3, 2))}, 0) == [0]
    assert output_axes({"a": jnp.ones((3, 2)), "b": jnp.ones((2, 3))}) == [1, 1]  # low-rank factors, no bias
    stacked, _ = models.make("scanned")
    axes = dict(zip(paths.paths(stacked), output_axes(stacked, stacked="steps"), strict=True))
    assert axes["steps/Dense_0/kernel"] == 2
    assert axes["steps/LayerNorm_0/scale"] is None


def test_bad_words_are_refused():
    params, _ = models.make("scanned")
    with pytest.raises(ValueError, match="`is_layer` names 'stpes', but no leaf lies there: head/bias"):
        curvature.layers(params, ["stpes"])
    with pytest.raises(ValueError, match=r"`is_layer` finds no layer: got .*, there are head/bias"):
        curvature.layers(params, lambda path: None)
    with pytest.raises(ValueError, match="`stacked` finds no leaf: got 'stpes', there are head/bias"):
        curvature.layers(params, stacked="stpes")
    with pytest.raises(
        ValueError, match=r"one number of layers, but in head head/bias has shape \(2,\), head/k"
    ):
        curvature.layers(params, stacked="head")
    with pytest.raises(ValueError, match="must all have the axis of layers, but in all head/bias has None"):
        curvature.layers(params, lambda path: "all", stacked="steps")


def _units(like):
    flat, unravel = jax.flatten_util.ravel_pytree(like)
    return [unravel(unit) for unit in jnp.eye(flat.size, dtype=flat.dtype)]


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)
