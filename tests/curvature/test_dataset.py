"""Sums over many batches against the one product over all examples."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessabs
from hessabs import batch_axis, curvature, trees
from hessabs.curvature import parts, streaming

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize("num_devices", [None, 4])
@pytest.mark.parametrize("sizes", [(5, 5, 2), (1, 11)])
def test_weighted_mean_is_exact_for_uneven_batches(x64, make_problem, random_like, sizes, num_devices):
    problem = make_problem("mlp", jnp.float64)
    vector = random_like(problem.params)
    operator = curvature.dataset_hessian(
        problem.loss_fn, problem.params, _cut(problem.batch, sizes), mesh=_mesh(num_devices)
    )
    want = hessabs.hvp(problem.loss_fn, problem.params, problem.batch, vector)
    np.testing.assert_allclose(_flat(operator(vector)), _flat(want), rtol=1e-10, atol=1e-13)


def test_one_collective_a_product(make_problem, random_like):
    problem = make_problem("mlp")
    mesh = _mesh(4)
    vector = random_like(problem.params)
    total = streaming._rows(vector, mesh)
    source = curvature.dataset_hessian(problem.loss_fn, problem.params, [problem.batch], mesh=mesh).source
    where = trees.Static((mesh, True))
    batch = streaming._add_on_each.trace(source._replace(batch=problem.batch), vector, total, where).lower()
    end = streaming._finish_on_each.trace(total, 12, vector).lower()
    assert _collectives(batch) == []
    assert _collectives(end) == ["all-reduce"]


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["host", "device", "traced"])
def test_a_batch_over_budget_is_split(x64, make_problem, random_like, loop):
    problem = make_problem("mlp", jnp.float64, num_examples=11)
    vector = random_like(problem.params)
    source = curvature.hessian(problem.loss_fn, problem.params, problem.batch).source
    whole = curvature.linearization.residual_bytes(source)
    operator = curvature.hessian(
        problem.loss_fn, problem.params, problem.batch, linearize="auto", memory_budget=whole // 3
    )
    source, (size, wrong) = operator.source, operator.rest
    assert wrong is None  # nothing was traced
    part = jax.tree.map(lambda x: x[: size.value], problem.batch)
    assert curvature.linearization.residual_bytes(source._replace(batch=part)) <= whole // 3
    want = hessabs.hvp(problem.loss_fn, problem.params, problem.batch, vector)
    if loop == "host":
        got = operator(vector)
    elif loop == "device":
        got = parts._jitted_split_product(source, size, vector)
    else:
        got = jax.jit(lambda operator, v: operator(v))(operator, vector)
    np.testing.assert_allclose(_flat(got), _flat(want), rtol=1e-10, atol=1e-13)


def test_a_batch_within_budget_is_linearised(make_problem):
    problem = make_problem("mlp")
    make = lambda budget: curvature.hessian(  # noqa: E731
        problem.loss_fn, problem.params, problem.batch, linearize="auto", memory_budget=budget
    )
    size = curvature.linearization.residual_bytes(make(2**20).source)
    for budget in (2**20, size):
        [linearization] = make(budget).rest
        assert sum(x.nbytes for x in linearization.residuals) == size
    assert make(size - 1).runs == "called"


def test_eigenvalue_of_a_data_set(make_problem):
    problem = make_problem("mlp")
    seen = []
    operator = curvature.dataset_hessian(
        problem.loss_fn, problem.params, _cut(problem.batch, (5, 5, 2)), progress=seen.append
    )
    got = hessabs.power_iteration(operator, problem.params, max_iters=4, rtol=0)
    whole = curvature.hessian(problem.loss_fn, problem.params, problem.batch)
    want = hessabs.power_iteration(whole, problem.params, max_iters=4, rtol=0)
    np.testing.assert_allclose(got.eigenvalue, want.eigenvalue, rtol=1e-4)
    assert seen == [5, 5, 2] * 4


def test_batches_of_one_shape_compile_once(make_problem):
    problem = make_problem("mlp")
    traces = []

    def loss(params, batch):
        traces.append(1)
        return problem.loss_fn(params, batch)

    operator = curvature.dataset_hessian(loss, problem.params, _cut(problem.batch, (3, 3, 3, 3)))
    operator(problem.params)
    first = len(traces)
    assert first <= 3  # the product, and the loss of a few rows, which is looked at once
    for _ in range(2):
        operator(problem.params)
    assert len(traces) == first


class _Loader:
    """Batches that change between passes in a chosen way."""

    def __init__(self, batch, change):
        self.batch, self.change, self.rng = batch, change, np.random.default_rng(0)

    def __iter__(self):
        batch = jax.tree.map(np.asarray, self.batch)
        if self.change == "shuffle":
            order = self.rng.permutation(12)
            batch = jax.tree.map(lambda x: x[order], batch)
        elif self.change == "augment":
            batch = {**batch, "image": batch["image"] + self.rng.normal(size=batch["image"].shape)}
        yield from _cut(batch, (6, 6))


def test_check_deterministic_says_where_to_look(make_problem):
    problem = make_problem("mlp")

    def mixing_loss(params, batch):  # like batch norm in training mode
        return problem.loss_fn(params, {**batch, "image": batch["image"] - batch["image"].mean(0)})

    class Stateful:  # a loss with a random draw that is not an argument
        calls = 0

        def __call__(self, params, batch):
            def draw():
                Stateful.calls += 1
                return np.float32(Stateful.calls)

            noise = jax.pure_callback(draw, jax.ShapeDtypeStruct((), jnp.float32))
            return noise * problem.loss_fn(params, batch)

    def check(loss, change):
        operator = curvature.dataset_hessian(
            loss, problem.params, _Loader(problem.batch, change), weight=batch_axis.num_examples
        )
        curvature.check_deterministic(operator, problem.params)

    check(problem.loss_fn, "nothing")
    check(problem.loss_fn, "shuffle")  # a mean over examples does not see the order
    with pytest.raises(ValueError, match="another order: stop shuffling, and put batch norm into evaluation"):
        check(mixing_loss, "shuffle")
    with pytest.raises(ValueError, match="the examples themselves differ: look at augmentation"):
        check(problem.loss_fn, "augment")
    with pytest.raises(ValueError, match="the batches are the same in both passes: look at dropout"):
        check(Stateful(), "nothing")


def test_bad_data_sets_are_refused(make_problem):
    problem = make_problem("mlp")
    with pytest.raises(ValueError, match="The data set is empty"):
        curvature.dataset_hessian(problem.loss_fn, problem.params, [])(problem.params)
    with pytest.raises(ValueError, match="generator can be read only once"):
        curvature.dataset_hessian(problem.loss_fn, problem.params, (b for b in [problem.batch]))
    operator = curvature.dataset_hessian(problem.loss_fn, problem.params, [problem.batch])
    with pytest.raises(ValueError, match="cannot run inside a compiled loop or under a trace"):
        jax.jit(operator)(problem.params)
    with pytest.raises(ValueError, match="cannot run inside a compiled loop"):
        hessabs.power_iteration(operator, problem.params, loop="device")
    with pytest.raises(ValueError, match=r"at \['head'\]\['bias'\]"):
        operator({"hidden": problem.params["hidden"]})


def _cut(batch, sizes):
    ends = np.cumsum(sizes)
    return [
        jax.tree.map(lambda x, e=end, s=size: x[e - s : e], batch)
        for end, size in zip(ends, sizes, strict=True)
    ]


def _mesh(num_devices):
    if num_devices is None:
        return None
    assert jax.device_count() >= num_devices, "the tests need 4 devices: JAX_NUM_CPU_DEVICES=4"
    return jax.sharding.Mesh(np.array(jax.devices()[:num_devices]), ("data",))


def _collectives(lowered):
    return re.findall(
        r"= \S+ (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", lowered.compile().as_text()
    )


def _flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)
