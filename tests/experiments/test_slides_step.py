"""The parts of a run of each config of the slides, on images of the true shape, with a small batch, and an
update of two of them; networks of many blocks with few of them.
"""

import jax
import numpy as np
import optax
import pytest

from experiments import grid, slides
from experiments.training import own
from hessabs import models
from hessabs.data import as_source
from hessabs.training import assemble, tasks
from hessabs.training.loop_state import start
from hessabs.training.run import prepare
from hessabs.training.tasks.named import TaskSettings
from tests.models.test_every_network import shallow

SHAPES = {
    "cifar10": ((32, 32, 3), 10),
    "svhn": ((32, 32, 3), 10),
    "tiny_imagenet": ((64, 64, 3), 200),
    "imagenet": ((224, 224, 3), 1000),
}
BATCH = 4
TRAINED = ("cifar10_resnet20", "svhn_alexnet")  # an update of every network is in tests/models


@pytest.mark.slow
@pytest.mark.parametrize("name", slides.configs())
def test_one_update_with_adversarial_examples(name):
    this = grid.load(grid.find([name]))
    shape, num_classes = SHAPES[this.slides[0]]
    largest = max(run["max_batch_size"] for run in this.runs.values() if run["method"] == "absa")
    small = {"batch_size": BATCH, "max_batch_size": 2 * BATCH, "pgd_steps": 0, "adversarial_fraction": 0.5}
    settings = {**this.runs[f"absa_{largest}/seed0"], **small}
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.integers(0, 256, (2 * BATCH, *shape), dtype=np.uint8),
        "label": rng.integers(0, num_classes, 2 * BATCH).astype(np.int32),
    }
    network = shallow(models.create(settings["model"], num_classes))
    source = as_source(arrays)  # the images are at hand
    task = tasks.linen(network, (source, source), num_classes=num_classes)
    given = {key: value for key, value in own(settings).items() if key not in TaskSettings._fields}
    parts = assemble(given, task)
    if name not in TRAINED:
        first = parts.rule.init()
        assert (int(first.batch_size), float(first.adversarial_fraction)) == (BATCH, 0.5)
        return
    run = prepare(parts.task, parts.optimizer, parts.rule, **parts.options)
    decision = start(run).decision
    assert (decision.batch_size, decision.adversarial_fraction) == (BATCH, 0.5)
    before = jax.device_get(run.state.params)
    batch = {**{key: value[:BATCH] for key, value in arrays.items()}, "weight": np.ones(BATCH, np.float32)}
    state = run.functions.whole(run.state, batch, decision.adversarial_fraction, decision.lr_scale)
    after = jax.device_get(state.params)
    assert int(state.updates) == 1
    assert int(state.nonfinite_update) == 0
    moved = float(optax.tree.norm(jax.tree.map(lambda a, b: a - b, after, before)))
    assert 0 < moved < np.inf
