"""Krylov methods on params sharded over a mesh: nothing is gathered, and the numbers are those of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from hessabs import curvature

pytestmark = pytest.mark.sampled
SHAPES = {"kernel": (24, 8), "bias": (8,)}
SIZE = 200
LAYOUTS = {
    "fsdp": ({"data": 4}, {"kernel": P("data"), "bias": P("data")}),
    "two axes": ({"data": 2, "model": 2}, {"kernel": P("data", "model"), "bias": P("model")}),
    "partly": ({"data": 2, "model": 2}, {"kernel": P(None, ("data", "model")), "bias": P()}),
}
_RNG = np.random.default_rng(0)
FACTORS, WEIGHTS = _RNG.normal(size=(6, SIZE)) / 14, np.array([3, -5, 2, 4, -1, 1.5], np.float32)
DIAGONAL = np.linspace(-1, 1, SIZE)
MATRIX = np.diag(DIAGONAL) + (FACTORS.T * WEIGHTS) @ FACTORS
EIGENVALUES = np.linalg.eigvalsh(MATRIX)[::-1]


def _product(factors, diagonal, vector):
    parts = [jnp.sum(factors[k] * v, axis=tuple(range(1, v.ndim + 1))) for k, v in vector.items()]
    weights = sum(parts) * WEIGHTS
    return {
        k: diagonal[k] * v + jnp.sum(weights.reshape(-1, *[1] * v.ndim) * factors[k], axis=0)
        for k, v in vector.items()
    }


def _cut(rows):
    rows = np.float32(rows)
    return {"kernel": rows[..., :192].reshape(*rows.shape[:-1], 24, 8), "bias": rows[..., 192:]}


def _problem(layout, axis_type):
    axes, specs = LAYOUTS[layout]
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(axis_type,) * len(axes))

    def place(rows):
        lead = (None,) * (rows.ndim - 1)
        return {k: jax.device_put(x, NamedSharding(mesh, P(*lead, *specs[k]))) for k, x in _cut(rows).items()}

    start = np.random.default_rng(1).normal(size=SIZE)
    return Partial(_product, place(FACTORS), place(DIAGONAL)), place(start), place


def _same_placement(rows, vector):
    for row, like in zip(jax.tree.leaves(rows), jax.tree.leaves(vector), strict=True):
        want = NamedSharding(like.sharding.mesh, P(None, *like.sharding.spec))
        assert row.sharding.is_equivalent_to(want, row.ndim)
        parts = like.size // like.addressable_shards[0].data.size
        assert {shard.data.size * parts for shard in row.addressable_shards} == {row.size}


def _rows(tree):
    return np.concatenate([np.asarray(tree[k], float).reshape(len(tree[k]), -1) for k in SHAPES], axis=1)


# Each combination is compiled, which takes long: every kind of mesh is among the fast tests once.
every_mesh = pytest.mark.parametrize(
    "axis_type",
    [AxisType.Explicit, pytest.param(AxisType.Auto, marks=pytest.mark.slow)],
    ids=["explicit", "auto"],
)
CASES = [
    ("fsdp", AxisType.Explicit, "host"),
    ("two axes", AxisType.Auto, "device"),
    ("partly", AxisType.Explicit, "host"),
    ("two axes", AxisType.Explicit, "device"),
    ("two axes", AxisType.Auto, "host"),
    ("fsdp", AxisType.Auto, "device"),
]


def some_meshes(fast):
    cases = [case if case == fast else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
    return pytest.mark.parametrize(("layout", "axis_type", "loop"), cases)


@some_meshes(CASES[1])
@pytest.mark.slow
def test_eigenpairs_and_their_basis_stay_sharded(layout, axis_type, loop):
    matvec, v0, _ = _problem(layout, axis_type)
    # So few rows that the process restarts.
    result = curvature.eigsh(matvec, v0, 4, which="BE", rtol=1e-4, num_vectors=14, keep_state=True, loop=loop)
    assert result.converged.all()
    np.testing.assert_allclose(result.eigenvalues, np.r_[EIGENVALUES[:2], EIGENVALUES[-2:]], rtol=1e-5)
    _same_placement(result.eigenvectors, v0)
    _same_placement(result.state.basis, v0)
    rows = _rows(result.eigenvectors)
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=3e-6)
    residuals = np.linalg.norm(rows @ MATRIX - result.eigenvalues[:, None] * rows, axis=1)
    np.testing.assert_allclose(result.residuals * np.abs(result.eigenvalues), residuals, atol=5e-6)


@every_mesh
@pytest.mark.slow
def test_blocks_states_and_plain_functions_on_a_mesh(axis_type):
    matvec, _, place = _problem("two axes", axis_type)
    starts = place(np.random.default_rng(2).normal(size=(3, SIZE)))
    options = {"k": 3, "block_size": 3, "rtol": 1e-4}
    whole = curvature.eigsh(matvec, starts, **options)
    np.testing.assert_allclose(whole.eigenvalues, EIGENVALUES[:3], rtol=1e-5)
    part = curvature.eigsh(matvec, starts, max_matvecs=11, keep_state=True, **options)
    rest = curvature.eigsh(matvec, starts, state=jax.tree.map(np.asarray, part.state), **options)
    assert rest.num_matvecs == whole.num_matvecs
    np.testing.assert_array_equal(rest.eigenvalues, whole.eigenvalues)
    product = jax.jit(matvec)
    warm = curvature.eigsh(lambda v: product(v), whole.eigenvectors, **options)
    assert warm.num_matvecs < whole.num_matvecs
    np.testing.assert_allclose(warm.eigenvalues, EIGENVALUES[:3], rtol=1e-5)


@some_meshes(CASES[0])
@pytest.mark.slow
def test_lanczos_density_and_traces_are_those_of_one_device(layout, axis_type, loop):
    matvec, v0, _ = _problem(layout, axis_type)
    one = Partial(_product, *(jax.tree.map(np.asarray, x) for x in matvec.args))
    like, key = jax.tree.map(np.asarray, v0), jax.random.key(0)
    got, want = (curvature.lanczos(f, v, 12, loop=loop) for f, v in ((matvec, v0), (one, like)))
    _same_placement(got.basis, v0)
    np.testing.assert_allclose(got.diagonal, want.diagonal, atol=2e-5)
    np.testing.assert_allclose(_rows(got.basis), _rows(want.basis), atol=2e-4)
    np.testing.assert_allclose(
        *(
            curvature.spectral_density(f, v, key, num_probes=2, num_iters=12, loop=loop).nodes
            for f, v in ((matvec, v0), (one, like))
        ),
        atol=1e-4,
    )
    for method in ("hutchinson", "hutch++"):
        got, want = (
            curvature.trace(f, v, key, num_matvecs=12, method=method, loop=loop)
            for f, v in ((matvec, v0), (one, like))
        )
        np.testing.assert_allclose(got.value, want.value, rtol=1e-4)
        np.testing.assert_allclose(got.standard_error, want.standard_error, rtol=1e-3)


@pytest.mark.slow
def test_lanczos_under_jit_on_an_explicit_mesh():
    matvec, v0, _ = _problem("fsdp", AxisType.Explicit)
    got = jax.jit(lambda v: curvature.lanczos(matvec, v, 8))(v0)
    _same_placement(got.basis, v0)
    np.testing.assert_allclose(got.diagonal, curvature.lanczos(matvec, v0, 8).diagonal, atol=2e-5)


@every_mesh
def test_hessian_of_a_sharded_network(axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    rng = np.random.default_rng(0)
    host = {"a": np.float32(rng.normal(size=(8, 4))), "b": np.float32(rng.normal(size=(4, 8)))}
    x, y = np.float32(rng.normal(size=(16, 8))), np.float32(rng.normal(size=(16, 8)))
    whole = NamedSharding(mesh, P())

    def loss_fn(params, batch):
        # Each layer is gathered as it is needed, as in fully sharded data parallel training.
        if axis_type == AxisType.Explicit:
            params = jax.tree.map(lambda p: jax.sharding.reshard(p, whole), params)
        return jnp.mean((jnp.tanh(batch[0] @ params["a"]) @ params["b"] - batch[1]) ** 2)

    params = jax.tree.map(lambda p: jax.device_put(p, NamedSharding(mesh, P("data"))), host)
    batch = jax.device_put((x, y), NamedSharding(mesh, P("data")))
    result = curvature.eigsh(curvature.hessian(loss_fn, params, batch), params, 3, rtol=1e-4)
    flat, unravel = jax.flatten_util.ravel_pytree(host)

    def dense_loss(v):
        params = unravel(v)
        return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"] - y) ** 2)

    want = np.linalg.eigvalsh(jax.jit(jax.hessian(dense_loss))(flat))[::-1][:3]
    np.testing.assert_allclose(result.eigenvalues, want, rtol=1e-4)
    _same_placement(result.eigenvectors, params)
