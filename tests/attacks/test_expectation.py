"""Expectation over randomness: the mean over draws, against a mean by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from hessabs import attacks
from hessabs.attacks import losses
from hessabs.attacks.losses import examples

pytestmark = pytest.mark.sampled

KEY = jax.random.key(0)


def masked(key, w, x):
    """A linear network of two classes that drops half of its inputs."""
    kept = jax.random.bernoulli(key, 0.5, w.shape)
    return jnp.stack([jnp.zeros(len(x)), x @ (2 * kept * w)], axis=1)


def masks(w, numbers):
    return np.stack([2 * jax.random.bernoulli(jax.random.fold_in(KEY, i), 0.5, w.shape) * w for i in numbers])


def plain(w, batch):
    return jnp.mean(masked(batch["key"], w, batch["image"])[:, 1] - batch["image"] @ w)


@pytest.mark.parametrize("eot", [1, 5])
def test_gradient_is_the_mean_over_fresh_draws(eot):
    w, batch = jnp.arange(1.0, 7.0), {"image": jnp.full((2, 6), 0.5), "key": KEY}
    evaluation = jax.jit(lambda i: examples.with_gradient(plain, w, batch, "image", eot, i))
    for i in (0, 3):
        values, fallen, gradient = evaluation(i)
        want = (masks(w, range(i * eot, (i + 1) * eot)) - np.asarray(w)).mean(0)
        np.testing.assert_allclose(gradient, np.tile(want, (2, 1)), rtol=1e-5)
        np.testing.assert_allclose(values, 0.5 * want.sum(), rtol=1e-5)
        assert not fallen.any()


def test_attacks_follow_the_mean():
    w, batch = jnp.arange(1.0, 7.0), {"image": jnp.full((2, 6), 0.5), "key": KEY}
    drawn, once = (attacks.fgsm(0.1, norm="l2", eot=eot) for eot in (4, None))
    got, of_one = jax.jit(lambda: [attack(plain, w, batch)["image"] - 0.5 for attack in (drawn, once)])()
    want = (masks(w, range(4)) - np.asarray(w)).mean(0)
    np.testing.assert_allclose(got, np.tile(0.1 * want / np.linalg.norm(want), (2, 1)), atol=1e-6)
    assert not np.allclose(got, of_one, atol=1e-3)


@pytest.mark.slow
def test_a_key_bound_to_the_logits_and_what_falls_in_some_draws_only():
    w, batch = jnp.ones(6), {"image": jnp.full((2, 6), 0.5), "label": jnp.array([0, 1])}
    loss_fn = losses.margin(Partial(masked, KEY))
    _, fallen, gradient = jax.jit(lambda: examples.with_gradient(loss_fn, w, batch, "image", 4))()
    np.testing.assert_array_equal(fallen, [True, False])
    np.testing.assert_allclose(gradient[0], masks(w, range(4)).mean(0), rtol=1e-5)
    got = attacks.bim(0.2, steps=3, eot=8)(loss_fn, w, {"image": batch["image"], "label": jnp.array([1, 1])})
    assert got["image"].max() < 0.5  # every entry counts in some draw


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi_fgsm", "adam_pgd", "apgd"])
def test_refuses(name):
    batch, factory = {"image": jnp.full((2, 6), 0.5)}, getattr(attacks, name)
    with pytest.raises(ValueError, match="`eot` must be a whole number of at least 1, got 0"):
        factory(0.1, eot=0)
    with pytest.raises(ValueError, match="`eot` asks for 3 draws, but there is no random key in the batch"):
        factory(0.1, eot=3)(lambda w, b: jnp.mean(b["image"] @ w), jnp.ones(6), batch, KEY)
