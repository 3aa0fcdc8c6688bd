"""Every rule of the command line trains; those that measure nothing make the updates that were planned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import models
from hessabs.batch_size import gradient_statistics, methods
from hessabs.data import Dataset, micro_batches
from hessabs.training import Config, set_up, train
from hessabs.training.config import resolve
from hessabs.training.losses import scale_images, training_loss
from hessabs.training.setup import make_optimizer
from hessabs.training.state import init_state
from hessabs.training.step import make_step_functions

SIZE = 16
CONFIG = Config(
    batch_size=SIZE,
    max_batch_size=64,
    epochs=6,
    lr=0.01,
    lr_decay_epochs=(2, 4),
    patience=2,
    warmup_epochs=2,
    cycle_epochs=3,
    hessian_batch_size=SIZE,
    hessian_iters=2,
)


@pytest.fixture(scope="module")
def images():
    """136 random images, so that 8 of each epoch fill no micro-batch."""
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (136, 4, 4, 1), dtype=np.uint8),
        "label": rng.integers(0, 10, 136, dtype=np.int32),
    }
    return Dataset("random", arrays, arrays, 10)


@pytest.mark.parametrize("method", ["bl", "fb", "gg", "cyclical", "timer"])
def test_updates_are_as_planned(method, images):
    config = CONFIG._replace(method=method)
    settings = methods.Settings(
        **{name: getattr(config, name) for name in methods.Settings._fields if hasattr(config, name)},
        num_examples=136,
        remainder="drop",
    )
    planned = methods.make_plans(settings._replace(micro_batch_size=SIZE), whole_updates=True)
    assert planned.fewest == planned.most
    result = train(set_up(config, images))
    assert result.summary["updates"] == planned.fewest.updates
    # A row of the plan holds the batch of its epoch's last update, or the one being accumulated.
    assert max(r["batch_size"] for r in result.records) == max(e.batch_size for e in planned.fewest.epochs)


@pytest.mark.parametrize("method", ["gns", "norm_test", "stability"])
def test_rules_that_measure_train(method, images):
    result = train(set_up(CONFIG._replace(method=method, epochs=3), images))
    sizes = [record["batch_size"] for record in result.records]
    assert sizes == sorted(sizes)
    assert set(sizes) <= {16, 32, 48, 64}
    assert all(count <= 1 for count in result.summary["compilations"].values())
    assert (result.summary["micro_batch_size"] == SIZE // 2) == (method != "stability")


def test_statistics_are_those_of_the_micro_batches(images):
    config = resolve(CONFIG._replace(method="gns"), 136)
    model, optimizer = models.mlp(hidden=(8,)), make_optimizer(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))["params"]
    functions = make_step_functions(model, optimizer, gradient_statistics=True)
    state = init_state(jax.tree.map(jnp.copy, params), {}, optimizer)
    stream, gradients = micro_batches(images.train, 8, seed=0), []
    for _ in range(3):
        batch, _ = next(stream)
        gradients.append(jax.grad(lambda p, b: training_loss(model, {}, p, b)[0])(params, scale_images(batch)))
        state = functions.accumulate(state, batch)
    state = functions.apply_update(state, 1.0)
    want = gradient_statistics(jax.tree.map(lambda *g: jnp.stack(g), *gradients), 8)
    np.testing.assert_allclose(state.statistics[:4], want[:4], rtol=1e-5)
    assert int(state.parts) == 0
    assert float(state.square) == 0.0


@pytest.mark.parametrize("changes", [{"micro_batch_size": 16}, {"batch_size": 1, "max_batch_size": 4}])
def test_gradient_rules_need_two_micro_batches(changes):
    with pytest.raises(ValueError, match="compares micro-batches"):
        resolve(CONFIG._replace(method="gns", **changes), 136)
