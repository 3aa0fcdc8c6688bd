"""Gradients and logits that are not finite: they move nothing, and count neither as success nor as robust."""

import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses
from tests.attacks.cases import CASES, KEY, LOSS, PARAMS, fallen, logits_fn, make_batch, one_of_each

pytestmark = pytest.mark.sampled


def with_a_root(params, x):
    """The same logits; the gradient is NaN in the first entry where that is 0."""
    return logits_fn(params, x) + 0 * jnp.sqrt(x[:, 0, :1])


def with_a_norm(params, x):
    """The same logits; the gradient is NaN in all entries where the first one is 0."""
    return logits_fn(params, x) + 0 * jnp.sqrt(x[:, 0, :1] ** 2 * (1 + jnp.sum(x, axis=(1, 2))[:, None]))


@pytest.mark.parametrize("name", one_of_each("pgd-l1"))
@pytest.mark.parametrize("network", [with_a_root, with_a_norm])
def test_a_gradient_that_is_not_finite_moves_nothing(name, network):
    batch = make_batch(PARAMS)
    assert batch["image"][0, 0, 0] == 0
    attack = CASES[name].make(0.2)
    got = attack(losses.cross_entropy(network), PARAMS, batch, KEY)["image"]
    assert np.all(np.isfinite(got))
    if name.startswith(("pgd", "adam_pgd", "apgd", "square", "ensemble", "carlini_wagner")):
        return  # these start elsewhere, where there is a gradient
    if network is with_a_norm:
        np.testing.assert_array_equal(got[0], batch["image"][0])
    assert got[0, 0, 0] == 0
    want = attack(LOSS, PARAMS, batch, KEY)["image"]
    np.testing.assert_allclose(got[1:], want[1:], atol=CASES[name].tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_beside_a_root_at_zero(norm):
    batch = {"image": jnp.array([[0.0, 0.4], [0.5, 0.4]]), "label": jnp.array([1, 1])}
    loss_fn = losses.cross_entropy(lambda w, x: x @ w + 0 * jnp.sqrt(x[:, :1]))
    got = attacks.fgsm(0.1, norm=norm)(loss_fn, jnp.eye(2), batch)["image"]
    whole = 0.1 if norm == "linf" else 0.1 / np.sqrt(2)
    np.testing.assert_allclose(got, [[0, 0.3], [0.5 + whole, 0.4 - whole]], atol=1e-6)
    with pytest.warns(UserWarning, match="The gradient of 1 of 2 examples has entries that are not finite"):
        attacks.evaluate(loss_fn, jnp.eye(2), batch, {}, [])


def hidden_hole(params, x):
    """NaN logits for whatever is bright; else the same."""
    return logits_fn(params, x) + jnp.where(x[:, 1, 2] > 0.8, jnp.nan, 0)[:, None]


def test_logits_that_are_not_finite_are_reported():
    batch = make_batch(PARAMS, n=6)
    batch["image"] = batch["image"].at[:, 1, 2].set(jnp.array([0.75, 0.9, 0.3, 0.3, 0.3, 0.3]))
    right = ~fallen(PARAMS, batch)
    loss_fn = losses.cross_entropy(hidden_hole)

    def brighten(epsilon):
        return lambda loss, params, b, key=None: {**b, "image": b["image"].at[:, 1, 2].add(epsilon)}

    def broken(epsilon):
        wrong = jnp.where(jnp.arange(6) % 2, jnp.nan, jnp.inf)[:, None, None]
        return lambda loss, params, b, key=None: {**b, "image": b["image"] + wrong}

    message = r"logits of some of 6 examples are not finite: 1 as they are, 1 after bright at epsilon 0\.1\."
    with (
        pytest.warns(UserWarning, match=message),
        pytest.warns(UserWarning, match="Results of broken lie outside the ball or the bounds"),
    ):
        rows = attacks.evaluate(loss_fn, PARAMS, batch, {"bright": brighten, "broken": broken}, [0.1])
    clean, bright, nan_pixels, worst = rows
    assert clean.non_finite.tolist() == [False, True] + [False] * 4
    right[1] = False
    np.testing.assert_array_equal(clean.withstood, right)
    assert right[0]
    assert bright.non_finite.tolist() == [True, True] + [False] * 4
    assert not bright.withstood[0]
    moved = brighten(0.1)(None, None, batch)
    fell = right & fallen(PARAMS, moved)
    fell[0] = False
    want = right & ~fell
    want[0] = False
    np.testing.assert_array_equal(bright.withstood, want)
    assert (bright.mean_relative > 0) == fell.any()
    # Pixels of NaN or infinity are no perturbation: nothing has fallen, and nothing is in doubt.
    np.testing.assert_array_equal(nan_pixels.withstood, right)
    np.testing.assert_array_equal(nan_pixels.non_finite, clean.non_finite)
    np.testing.assert_array_equal(worst.non_finite, bright.non_finite)
    np.testing.assert_array_equal(worst.withstood, bright.withstood)


@pytest.mark.parametrize("name", one_of_each("pgd-l1"))
def test_no_attack_takes_nan_for_a_success(name):
    batch = make_batch(PARAMS)
    nowhere = losses.cross_entropy(lambda params, x: logits_fn(params, x) * jnp.nan)
    got = CASES[name].make(0.2)(nowhere, PARAMS, batch, KEY)
    assert np.all(np.isfinite(got["image"]))
    assert not losses.per_example(nowhere, PARAMS, got, "image")[1].any()
