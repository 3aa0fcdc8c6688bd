"""Accuracy of a network, clean and under FGSM, against counting by hand."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.training.evaluate import make_accuracy
from hessabs.training.robust import make_inner


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


SCALE = 50.0  # label 0 is ahead by 2 * SCALE * (sum of the pixels - 2), 20 to 60
PARAMS = {
    "Dense_0": {
        "kernel": SCALE * jnp.tile(jnp.array([[3.0, 1.0]]), (4, 1)),
        "bias": jnp.array([0.0, 4 * SCALE]),
    }
}
SUMS = np.linspace(2.21, 2.59, 20)
BATCH = {
    "image": np.float32(np.broadcast_to(SUMS[:, None, None, None] / 4, (20, 2, 2, 1))),
    "label": np.zeros(20, np.int32),
    "weight": np.ones(20, np.float32),
}


def accuracy(params, attack=None):
    return make_accuracy(Linear(), [BATCH], attack)(SimpleNamespace(params=params, model_state={}))


def test_fgsm_finds_the_gradient_of_a_network_that_is_sure():
    # In closed form each pixel goes down by epsilon; what log_softmax keeps in float32 points up.
    assert accuracy(PARAMS) == 100
    assert accuracy(PARAMS, attacks.fgsm(0.1)) == pytest.approx(100 * np.mean(SUMS - 0.4 > 2))
    inner = make_inner("fgsm", 0.1)
    got = inner.attack(inner.loss(Linear(), {}), PARAMS, jax.tree.map(jnp.asarray, BATCH))["image"]
    np.testing.assert_allclose(got, BATCH["image"] - 0.1, atol=1e-6)


def test_logits_of_nan_are_no_class():
    assert accuracy(jax.tree.map(lambda x: x * jnp.nan, PARAMS)) == 0
