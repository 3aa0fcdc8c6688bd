"""Attacks on a flax network with batch norm: its statistics are read and never written."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.attacks import losses
from tests.attacks.cases import CASES, KEY, mostly_slow

pytestmark = pytest.mark.sampled


class Network(nn.Module):
    """A dense network with a batch norm in between."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x.reshape(len(x), -1))
        return nn.Dense(4)(nn.relu(nn.BatchNorm(use_running_average=not train)(x)))


MODEL = Network()


@pytest.fixture(scope="module")
def problem():
    """A network whose statistics were moved, and images with its own predictions as labels."""
    image = jax.random.uniform(jax.random.key(1), (8, 2, 3), minval=0.1, maxval=0.9)
    variables = MODEL.init(jax.random.key(0), image, train=True)
    _, moved = MODEL.apply(variables, 5 * image, train=True, mutable=["batch_stats"])
    label = jnp.argmax(MODEL.apply({**variables, **moved}, image, train=False), axis=-1)
    return variables["params"], moved["batch_stats"], {"image": image, "label": label}


def logits_fn(statistics, params, image):
    return MODEL.apply({"params": params, "batch_stats": statistics}, image, train=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_slow(["fgsm", "pgd-linf", "trust_region-l2", "square-linf"], ["pgd-linf"])
)
def test_statistics_are_read_and_not_written(problem, name):
    params, statistics, batch = problem
    before = jax.tree.map(np.array, statistics)
    attack, results = CASES[name].make(0.2), []
    for scale in (1.0, 4.0):
        scaled = jax.tree.map(lambda x, scale=scale: scale * x, statistics)
        loss_fn = losses.cross_entropy(jax.tree_util.Partial(logits_fn, scaled))
        results.append(attack(loss_fn, params, batch, KEY)["image"])
    jax.tree.map(np.testing.assert_array_equal, statistics, before)
    assert not np.array_equal(*results)


def test_images_do_not_share_statistics(problem):
    params, statistics, batch = problem
    loss_fn = losses.cross_entropy(jax.tree_util.Partial(logits_fn, statistics))
    attack = CASES["pgd-linf"].make(0.2)
    other = {**batch, "image": jnp.where((jnp.arange(8) == 2)[:, None, None], batch["image"], 0.5)}
    got, want = (attack(loss_fn, params, b, KEY)["image"] for b in (other, batch))
    np.testing.assert_allclose(got[2], want[2], atol=1e-6)
    assert not np.allclose(got[3], want[3], atol=1e-3)
