"""Every rule of the command line trains; those that measure nothing make the updates that were planned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hessabs import batch_size, models
from hessabs.batch_size import gradient_statistics, methods
from hessabs.batch_size.settings import METHODS, PlanSettings
from hessabs.data import Dataset, micro_batches
from hessabs.training import fit, tasks
from hessabs.training.assemble import assemble
from hessabs.training.objectives import Objective
from hessabs.training.optimizers import as_optimizer
from hessabs.training.step import init_state, jit_functions, make_functions

pytestmark = pytest.mark.sampled
SIZE, NUMBER = 16, 136  # 8 of each epoch fill no micro-batch
RUN = {"batch_size": SIZE, "epochs": 6, "lr_decay_epochs": (2, 4), "lr": 0.01}
RUN |= {"hessian_batch_size": SIZE, "hessian_iters": 2}
OWN = {
    "bl": {},
    "fb": {"warmup_epochs": 2.0},
    "gg": {},
    "cyclical": {"cycle_epochs": 3},
    "timer": {"patience": 2},
    "seesaw": {},
    "fixed": {"grow_epochs": (1, 4)},
}


@pytest.fixture(scope="module")
def task():
    """Random images."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (NUMBER, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, NUMBER, dtype=np.int32),
    }
    return tasks.linen(models.mlp(10, (8,)), Dataset("random", arrays, arrays, 10))


def run(task, method, **changes):
    largest = {} if method == "bl" else {"max_batch_size": 64}
    parts = assemble({**RUN, **largest, **OWN.get(method, {}), "method": method, **changes}, task)
    return fit(parts.task, parts.optimizer, parts.rule, **parts.options)


@pytest.mark.parametrize(
    "method",
    [method if method == "gg" else pytest.param(method, marks=pytest.mark.slow) for method in OWN],
)
@pytest.mark.slow
def test_updates_are_as_planned(method, task):
    settings = PlanSettings(**{name: RUN[name] for name in PlanSettings._fields if name in RUN})
    fields = {"max_batch_size": 64, **OWN[method]}
    chosen = METHODS[method](**{name: fields[name] for name in METHODS[method]._fields if name in fields})
    settings = settings._replace(micro_batch_size=SIZE, remainder="drop")
    planned = methods.make_plans(settings, chosen, NUMBER, whole_updates=True)
    assert planned.fewest == planned.most
    result = run(task, method)
    assert result.summary["updates"] == planned.fewest.updates
    assert max(r["batch_size"] for r in result.records) == max(e.batch_size for e in planned.fewest.epochs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["norm_test", *(pytest.param(method, marks=pytest.mark.slow) for method in ("gns", "stability"))]
)
def test_rules_that_measure_train(method, task):
    result = run(task, method, epochs=3)
    sizes = [record["batch_size"] for record in result.records]
    assert sizes == sorted(sizes)
    assert set(sizes) <= {16, 32, 48, 64}
    assert all(count <= 1 for count in result.summary["compilations"].values())
    assert (result.summary["micro_batch_size"] == SIZE // 2) == (method != "stability")


@pytest.mark.slow
def test_statistics_are_those_of_the_micro_batches(task):
    optimizer = as_optimizer(optax.sgd(0.1))
    functions, _ = make_functions(task, optimizer, Objective(), gradient_statistics=True)
    functions = jit_functions(functions, 8, one_by_one=True)
    key = jax.random.key(0)
    state = init_state(task, optimizer, key, (), average=False)
    params = jax.tree.map(jnp.copy, state.params)
    stream, gradients = micro_batches(task.train, 8, seed=0), []
    totals = functions.begin(state)
    gradient = jax.jit(jax.grad(lambda p, b: task.loss(p, {}, task.prepare(b), key, True).mean))
    for number in range(3):
        batch, _ = next(stream)
        gradients.append(gradient(params, batch))
        totals = functions.add(state, totals, batch, None, number)
    state = functions.finish(state, totals, 1.0)
    want = gradient_statistics(jax.tree.map(lambda *g: jnp.stack(g), *gradients), 8)
    np.testing.assert_allclose(state.statistics[:4], want[:4], rtol=1e-5)


@pytest.mark.slow
def test_nothing_is_known_of_the_noise_where_a_micro_batch_is_short(task):
    # The end of an epoch with remainder=keep: its mean of fewer examples is noisier, and not one among equals.
    optimizer = as_optimizer(optax.sgd(0.1))
    functions, _ = make_functions(task, optimizer, Objective(), gradient_statistics=True)
    functions = jit_functions(functions, 8, one_by_one=True)
    state = init_state(task, optimizer, jax.random.key(0), (), average=False)
    totals, stream = functions.begin(state), micro_batches(task.train, 8, seed=0)
    for number, real in enumerate((8, 3)):
        batch, _ = next(stream)
        batch["weight"] = (np.arange(8) < real).astype(np.float32)
        totals = functions.add(state, totals, batch, None, number)
    state = functions.finish(state, totals, 1.0)
    assert np.isnan(state.statistics.mean_square)
    assert np.isfinite(state.statistics.square_mean)
    for rule in (
        batch_size.gradient_noise_scale(16, 64, measure_every=16, average_over=1),
        batch_size.norm_test(16, 64, measure_every=16),
        batch_size.ramp(16, 64, measure_every=1, average_over=1),
    ):
        after = rule.update(batch_size.Observation(16, gradient=state.statistics), rule.init())
        assert int(after.batch_size) == 16


@pytest.mark.parametrize("given", [{"micro_batch_size": 16}, {"batch_size": 1, "max_batch_size": 4}], ids=str)
def test_gradient_rules_need_two_micro_batches(given, task):
    with pytest.raises(ValueError, match="compares micro-batches"):
        assemble({**RUN, "method": "gns", "max_batch_size": 64, **given}, task)
    rule = batch_size.norm_test(16, 64, measure_every=100)
    with pytest.raises(
        ValueError, match="`micro_batch_size` must be below batch_size=16 for this rule, which compares"
    ):
        fit(task, optax.sgd(0.1), rule, epochs=1, micro_batch_size=16)
