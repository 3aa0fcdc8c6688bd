"""Networks and inputs of 16 bits: what has fallen is what the network itself says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses
from hessabs.attacks.outcomes import look
from tests.attacks.cases import KEY, mostly_slow

LOGITS_ATTACKS = {
    "deepfool": lambda: attacks.deepfool(),
    "trust_region": lambda: attacks.trust_region(0.05),
    "ensemble": lambda: attacks.ensemble(0.05, steps=3, queries=4),
    "carlini_wagner": lambda: attacks.carlini_wagner(steps=50, binary_search_steps=2, learning_rate=0.05),
    "pgd": lambda: attacks.pgd(0.05, steps=3, random_start=False),
    "square": lambda: attacks.square(0.05, queries=10),
}


# The logits are 1/2 and 1/2 + x[1]. With an x[1] of 2^-10 the second one is 1/2 too in bfloat16, and the first
# one wins.
WEIGHTS = jnp.array([[0.5, 0.5], [0.0, 1.0]])
TIE, CLEAR = [1.0, 2.0**-10], [1.0, 0.25]


def narrow(w, x):
    return x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)


@pytest.mark.parametrize("loop", [pytest.param("host", marks=pytest.mark.slow), "device"])
@pytest.mark.parametrize("name", mostly_slow(LOGITS_ATTACKS, ["deepfool", "trust_region"]))
def test_a_tie_of_the_network_is_no_success(name, loop, monkeypatch):
    batch = {"image": jnp.array([TIE, TIE]), "label": jnp.array([0, 0])}
    monkeypatch.setattr("hessabs.loops.choose", lambda asked, *operands: loop)
    got = LOGITS_ATTACKS[name]()(losses.margin(narrow), WEIGHTS, batch, KEY)["image"]
    np.testing.assert_array_equal(np.argmax(narrow(WEIGHTS, batch["image"]), axis=1), [0, 0])
    np.testing.assert_array_equal(np.argmax(narrow(WEIGHTS, got), axis=1), [1, 1])


def test_a_tie_of_the_network_is_right_before_the_attack():
    batch = {"image": jnp.array([TIE, CLEAR]), "label": jnp.array([0, 0])}
    seen = look(losses.cross_entropy(narrow), WEIGHTS, batch, "image", "l2")
    np.testing.assert_array_equal(seen.right, [True, False])
    fallen = jax.jit(lambda batch: losses.per_example(losses.margin(narrow), WEIGHTS, batch, "image")[1])
    np.testing.assert_array_equal(fallen(batch), [False, True])


@pytest.mark.slow
@pytest.mark.parametrize("make", [attacks.fgsm, attacks.l2hess, attacks.bim])
def test_gradients_that_vanish_in_float16_are_warned_of(make):
    # The label is ahead by 20. In float32 the gradient is about 1e-9.
    batch = {"image": jnp.full((1, 2), 0.5), "label": jnp.array([0])}
    loss_fn = losses.cross_entropy(lambda w, x: x.astype(jnp.float32) @ w + jnp.array([20.0, 0.0]))
    attack = make(0.1)
    assert not np.array_equal(attack(loss_fn, jnp.eye(2), batch)["image"], batch["image"])
    batch["image"] = batch["image"].astype(jnp.float16)
    with pytest.warns(UserWarning, match="are float16: a gradient below 6e-08 is 0 in it, .* by about 17"):
        got = attack(loss_fn, jnp.eye(2), batch)["image"]
    np.testing.assert_array_equal(got, batch["image"])


@pytest.mark.slow
def test_minimal_attacks_fell_every_example_of_a_linear_bfloat16_network():
    def network(w, x):
        return x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)

    w, x = jax.random.normal(jax.random.key(0), (64, 10)), jax.random.uniform(jax.random.key(1), (300, 64))
    batch = {"image": x, "label": jnp.argmax(network(w, x), axis=-1)}
    minimal = {"deepfool": attacks.deepfool(), "trust_region": attacks.trust_region(0.05)}
    loss_fn = losses.cross_entropy(network)
    rows = attacks.evaluate(loss_fn, w, batch, {}, [10.0], norm="l2", minimal=minimal)
    accuracy = {row.attack: row.accuracy for row in rows[1:]}
    assert max(accuracy.values()) < 0.01, accuracy
