"""A mean over batches is the mean over what the loss averages, whatever the batches are cut into.

The reference is the dense Hessian, in float64, of the loss of all tokens in one batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from hessabs import batch_axis, curvature

pytestmark = pytest.mark.sampled


def tokens(n=11, length=3, seed=0):
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, 2, (n, length)).astype(np.float64)
    mask[4:6] = 0  # a part without a token
    return {
        "x": rng.normal(size=(n, length, 4)),
        "y": rng.integers(0, 3, (n, length)),
        "mask": mask,
        "scale": 1.5,
    }


def model(params, batch):
    return jnp.tanh(batch["x"] @ params["a"]) @ params["b"] * batch["scale"]


def losses(logits, batch):
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, batch["y"][..., None], -1)[..., 0]


def loss_of_outputs(logits, batch):
    # NaN where nothing counts, as such losses are.
    return jnp.sum(batch["mask"] * losses(logits, batch)) / jnp.sum(batch["mask"])


def loss_fn(params, batch):
    return loss_of_outputs(model(params, batch), batch)


def weight(batch):
    return batch["mask"]


def num_tokens(batch):
    return batch["mask"].sum()


@pytest.fixture
def params(x64):
    rng = np.random.default_rng(1)
    return {"a": jnp.asarray(rng.normal(size=(4, 2))), "b": jnp.asarray(rng.normal(size=(2, 3)))}


def cut(batch, sizes):
    ends = np.cumsum(sizes)
    return [
        {k: v if k == "scale" else v[end - size : end] for k, v in batch.items()}
        for end, size in zip(ends, sizes, strict=True)
    ]


def matrix(operator, params):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    columns = [jax.flatten_util.ravel_pytree(operator(unravel(e)))[0] for e in np.eye(flat.size)]
    return np.stack(columns, axis=1)


def dense_hessian(params, batch):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return jax.jit(jax.hessian(lambda x: loss_fn(unravel(x), batch)))(flat)


def dense_gauss_newton(params, batch):
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    outputs = lambda x: model(unravel(x), batch)  # noqa: E731
    jacobian, p = jax.jit(lambda x: (jax.jacobian(outputs)(x), jax.nn.softmax(outputs(x))))(flat)
    jacobian, p = np.asarray(jacobian), np.asarray(p)  # (n, length, 3, size) and (n, length, 3)
    middle = np.einsum("ntk,kl->ntkl", p, np.eye(3)) - np.einsum("ntk,ntl->ntkl", p, p)
    return np.einsum("nt,ntki,ntkl,ntlj->ij", batch["mask"], jacobian, middle, jacobian) / batch["mask"].sum()


SIZES = [(4, 2, 5), (1, 10), (11,)]
OVER_DATA = {
    "hessian": lambda p, b, **o: curvature.dataset_hessian(loss_fn, p, b, **o),
    "gauss_newton": lambda p, b, **o: curvature.dataset_gauss_newton(model, loss_of_outputs, p, b, **o),
    "fisher": lambda p, b, **o: curvature.dataset_fisher(model, p, b, **o),
}


@pytest.mark.parametrize(
    ("name", "sizes", "num_devices", "weight"),
    [  # a number or the mask, as a loss gives it; a Fisher matrix asks which positions count
        ("hessian", SIZES[0], None, num_tokens),
        ("hessian", SIZES[1], 4, weight),
        ("gauss_newton", SIZES[0], 4, num_tokens),
        ("gauss_newton", SIZES[2], None, weight),
        ("fisher", SIZES[1], None, weight),
        ("fisher", SIZES[2], 4, weight),
    ],
)
def test_data_sets(params, name, sizes, num_devices, weight):
    mesh = None if num_devices is None else Mesh(jax.devices()[:num_devices], ("data",))
    batch = tokens()
    operator = OVER_DATA[name](params, cut(batch, sizes), weight=weight, mesh=mesh)
    want = dense_hessian(params, batch) if name == "hessian" else dense_gauss_newton(params, batch)
    np.testing.assert_allclose(matrix(operator, params), want, rtol=1e-9, atol=1e-12)


def test_landscape(params):
    batch, direction = tokens(), jax.tree.map(jnp.ones_like, params)
    found = curvature.landscape(
        loss_fn, params, cut(batch, SIZES[0]), [direction], [np.array([0.0, 0.5])], weight=weight
    )
    moved = jax.tree.map(lambda p, d: p + 0.5 * d, params, direction)
    loss = jax.jit(lambda params: loss_fn(params, batch))
    np.testing.assert_allclose(found.values, [loss(params), loss(moved)], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "traced", "weight"),
    [("hessian", False, num_tokens), ("hessian", True, weight), ("gauss_newton", False, num_tokens)],
)
def test_parts_of_a_batch(params, name, traced, weight):
    batch, options = tokens(), {"linearize": "auto", "memory_budget": 2_000, "weight": weight}
    if name == "hessian":
        operator, want = curvature.hessian(loss_fn, params, batch, **options), dense_hessian(params, batch)
    else:
        operator = curvature.gauss_newton(model, loss_of_outputs, params, batch, **options)
        want = dense_gauss_newton(params, batch)
    assert operator.rest[0].value < 11
    product = jax.jit(lambda operator, v: operator(v)) if traced else lambda operator, v: operator(v)
    got = matrix(lambda v: product(operator, v), params)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "way", "weight"),
    [
        ("hessian", "shard_map", num_tokens),
        ("hessian", "unchecked", weight),
        ("hessian", "pmap", weight),
        ("gauss_newton", "shard_map", num_tokens),
    ],
)
def test_shares_of_devices(params, name, way, weight):
    batch = tokens(12)
    shares = {k: v for k, v in batch.items() if k != "scale"}
    vector = jax.tree.map(lambda x: jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), params)

    def product(params, share):
        share = {**share, "scale": 1.5}
        options = {"axis_name": "data", "weight": weight}
        if name == "hessian":
            return curvature.hessian(loss_fn, params, share, **options)(vector)
        return curvature.gauss_newton(model, loss_of_outputs, params, share, **options)(vector)

    if way == "pmap":
        parts = jax.tree.map(lambda x: x.reshape(4, 3, *x.shape[1:]), shares)
        got = jax.tree.map(lambda x: x[0], jax.pmap(product, "data", in_axes=(None, 0))(params, parts))
    else:
        mesh, P = Mesh(jax.devices()[:4], ("data",)), jax.sharding.PartitionSpec
        run = jax.shard_map(
            product, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=way == "shard_map"
        )
        got = jax.jit(run)(params, shares)
    want = dense_hessian(params, batch) if name == "hessian" else dense_gauss_newton(params, batch)
    flat = jax.flatten_util.ravel_pytree
    np.testing.assert_allclose(flat(got)[0], want @ flat(vector)[0], rtol=1e-9)


@pytest.mark.parametrize("streamed", [False, True])
def test_empirical_fisher_of_padded_rows(params, streamed):
    batch, gradient_of = tokens(), jax.jit(jax.grad(loss_fn))

    def gradient(i):
        one = {k: v if k == "scale" else v[i : i + 1] for k, v in batch.items()}
        return jax.flatten_util.ravel_pytree(gradient_of(params, one))[0]

    rows = [i for i in range(11) if batch["mask"][i].sum() > 0]
    assert len(rows) < 11
    count = batch["mask"].sum(1)
    want = sum(count[i] * np.outer(gradient(i), gradient(i)) for i in rows) / count.sum()
    if streamed:
        operator = curvature.dataset_empirical_fisher(loss_fn, params, cut(batch, (4, 2, 5)), weight=weight)
    else:
        operator = curvature.empirical_fisher(loss_fn, params, batch, weight=weight)
    np.testing.assert_allclose(matrix(operator, params), want, rtol=1e-9, atol=1e-12)


def test_a_fisher_matrix_wants_to_know_which_positions_count(params):
    operator = curvature.fisher(model, params, tokens(), weight=lambda batch: batch["mask"].sum())
    with pytest.raises(ValueError, match=r"each position.*\(11, 3\).*got \(\)"):
        operator(params)


def test_a_row_that_alone_is_nothing(params):
    x, mask, w = jnp.arange(1.0, 5.0), jnp.array([1.0, 1, 1, 0]), jnp.ones(())
    loss = lambda w, b: jnp.sum(b[1] * (w * b[0]) ** 2) / jnp.sum(b[1])  # noqa: E731
    halves = [(x[:2], mask[:2]), (x[2:], mask[2:])]
    with pytest.warns(UserWarning, match="9 against nan"):
        curvature.dataset_hessian(loss, w, halves)(w)
    got = curvature.dataset_hessian(loss, w, halves, weight=lambda b: b[1].sum())(w)
    np.testing.assert_allclose(got, 28 / 3, rtol=1e-6)


def test_nothing_counts(params):
    batch = {**tokens(), "mask": np.zeros((11, 3))}
    with pytest.raises(ValueError, match="positive number, got 0"):
        curvature.dataset_hessian(loss_fn, params, [batch], weight=weight)(params)
    with pytest.raises(ValueError, match="positive number, got 0"):
        curvature.landscape(loss_fn, params, [batch], [params], [np.zeros(1)], weight=weight)


@pytest.mark.parametrize("key", [jax.random.PRNGKey, jax.random.key])
def test_a_random_key_is_no_example(key):
    batches = [{"key": key(0), "x": jnp.ones(3)}, {"key": key(1), "x": 3 * jnp.ones(1)}]
    loss = lambda w, batch: jnp.mean((w * batch["x"]) ** 2)  # noqa: E731
    assert curvature.dataset_hessian(loss, jnp.ones(()), batches)(jnp.ones(())) == 6  # 2 (3 * 1 + 9) / 4
    found = curvature.landscape(loss, jnp.ones(()), batches, [jnp.ones(())], [np.zeros(1)])
    assert found.values[0] == 3


def test_a_table_in_the_batch_is_named():
    batches = [{"class_weights": jnp.ones(10), "x": jnp.ones(3)}]
    operator = curvature.dataset_hessian(lambda w, b: jnp.mean(w * b["x"]), jnp.ones(()), batches)
    with pytest.raises(ValueError, match=r"class_weights.*has 10.*has 3"):
        operator(jnp.ones(()))


def test_a_typed_key_that_changes_is_found():
    class Loader:
        seed = 0

        def __iter__(self):
            self.seed += 1
            yield {"key": jax.random.key(self.seed), "x": jnp.ones(3)}

    loss = lambda w, b: jnp.mean((w * b["x"] * jax.random.normal(b["key"], (3,))) ** 2)  # noqa: E731
    operator = curvature.dataset_hessian(loss, jnp.ones(()), Loader(), weight=batch_axis.num_examples)
    with pytest.raises(ValueError, match="dropout keys"):
        curvature.check_deterministic(operator, jnp.ones(()))


def test_a_loss_that_is_no_mean_over_rows_is_not_taken_for_one(params):
    batch = tokens()
    operator = curvature.dataset_hessian(loss_fn, params, cut(batch, (3, 8)))
    with pytest.warns(UserWarning, match=r"not the mean of those of its halves, by rows.*Give `weight="):
        operator(params)
    operator(params)  # warns once
    with pytest.warns(UserWarning, match="not the mean"):
        curvature.landscape(loss_fn, params, cut(batch, (3, 8)), [params], [np.zeros(1)])
    with pytest.raises(ValueError, match="not the mean"):
        curvature.hessian(loss_fn, params, batch, linearize="auto", memory_budget=2_000)
    with pytest.raises(ValueError, match="not the mean"):
        curvature.gauss_newton(model, loss_of_outputs, params, batch, linearize="auto", memory_budget=2_000)


def test_a_mask_that_is_even_over_the_halves_is_seen(params):
    batch = jax.tree.map(lambda x: x[:8] if np.ndim(x) else x, tokens())
    batch["mask"] = np.tile(np.array([[1.0], [0.0]]), (4, 3))
    with pytest.warns(UserWarning, match="not the mean of those of its halves"):
        curvature.dataset_hessian(loss_fn, params, [batch, {**batch, "mask": np.ones((8, 3))}])(params)


@pytest.mark.slow
def test_under_jit_products_of_parts_are_nan_where_the_loss_is_no_mean_over_rows(params):
    batch, options = tokens(), {"linearize": "auto", "memory_budget": 2_000}

    def product(**more):
        return jax.jit(lambda p, b: curvature.hessian(loss_fn, p, b, **options, **more)(p))(params, batch)

    assert all(np.isnan(x).all() for x in jax.tree.leaves(product()))
    got, want = product(weight=weight), curvature.hvp(loss_fn, params, batch, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_the_last_batch_may_be_the_padded_one(params):
    batch = {**tokens(), "mask": np.ones((11, 3))}
    batch["mask"][9:] = 0
    with pytest.warns(UserWarning, match="not the mean"):
        curvature.dataset_hessian(loss_fn, params, cut(batch, (4, 7)))(params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "fisher"])
def test_parts_on_devices_of_unequal_weight(kind):
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(size=(2, 8, 3)), "mask": [[1] * 4 + [0] * 4, [0, 0] + [1] * 6]}
    batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), batch, is_leaf=lambda x: isinstance(x, list))
    w = jnp.arange(1.0, 4)

    def squares(w, batch):
        return jnp.sum(batch["mask"] * (batch["x"] @ w) ** 2) / jnp.sum(batch["mask"])

    def product(batch):
        options = {"linearize": "auto", "memory_budget": 1, "axis_name": "i", "weight": lambda b: b["mask"]}
        if kind == "hessian":
            return curvature.hessian(squares, w, batch, **options)(w)
        model = lambda w, batch: batch["x"] @ w[:, None]  # noqa: E731
        return 2 * curvature.fisher(model, w, batch, distribution="normal", **options)(w)

    want = jax.hessian(squares)(w, jax.tree.map(lambda x: x.reshape(16, *x.shape[2:]), batch)) @ w
    got = jax.vmap(product, axis_name="i")(batch)
    np.testing.assert_allclose(got, [want, want], rtol=1e-5)
    mesh = Mesh(np.array(jax.devices()[:2]), ("i",))
    one = jax.tree.map(lambda x: x.reshape(16, *x.shape[2:]), batch)
    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(product, mesh=mesh, in_specs=spec("i"), out_specs=spec())
    np.testing.assert_allclose(jax.jit(mapped)(one), want, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_masks_in_half_precision_are_summed_in_single(dtype):
    count = 70_000  # beyond what float16 holds, and far beyond what bfloat16 counts
    batch = {"x": jnp.ones((count, 1)), "mask": jnp.ones(count, dtype)}
    assert float(batch_axis.total_weight(lambda b: b["mask"], batch)) == count
    operator = curvature.fisher(
        lambda w, b: b["x"] @ w[:, None],
        jnp.ones(1),
        batch,
        distribution="normal",
        weight=lambda b: b["mask"],
    )
    np.testing.assert_allclose(operator(jnp.ones(1)), 1, rtol=1e-5)
