"""What attacks refuse before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks.checks import check_key


@pytest.mark.parametrize("epsilon", [0, 0.1, np.float32(0.1), np.array(0.1), jnp.float32(0.1)])
def test_numbers_are_numbers(epsilon):
    attacks.fgsm(epsilon)


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        ("8/255", "`epsilon` must be a number, got '8/255'"),
        (None, "`epsilon` must be a number, got None"),
        (jnp.array([0.1, 0.2]), r"`epsilon` must be one number for all examples, got shape \(2,\)"),
        ([0.1, 0.2], r"`epsilon` must be one number for all examples, got shape \(2,\)"),
    ],
)
def test_refuses_epsilon(epsilon, message):
    with pytest.raises(ValueError, match=message):
        attacks.fgsm(epsilon)


def test_refuses_a_traced_epsilon():
    with pytest.raises(ValueError, match="`epsilon` must be known before tracing, got a traced value"):
        jax.jit(lambda epsilon: attacks.fgsm(epsilon)(lambda p, b: 0.0, None, {"image": jnp.ones((1, 1))}))(0.1)


def test_refuses_other_numbers():
    with pytest.raises(ValueError, match="`steps` must be a number, got '10'"):
        attacks.carlini_wagner(steps="10")
    with pytest.raises(ValueError, match="`radius` must be a number, got 'small'"):
        attacks.trust_region("small")


@pytest.mark.parametrize("key", [jax.random.key(0), jax.random.PRNGKey(0), None])
def test_keys_are_keys(key):
    check_key(key)


@pytest.mark.parametrize("key", [0, np.int32(3), jnp.float32(1.0), "0"])
def test_refuses_keys(key):
    with pytest.raises(ValueError, match="`key` must be a random key, got"):
        attacks.pgd(0.1, steps=1)(lambda p, b: jnp.sum(b["image"]), None, {"image": jnp.ones((1, 1))}, key)


def test_refuses_an_empty_batch_under_jit_too():
    attack = attacks.bim(0.1, steps=1)
    for call in (attack, jax.jit(attack, static_argnums=0)):
        with pytest.raises(ValueError, match=r"The batch has no examples, got inputs of shape \(0, 3\)"):
            call(lambda p, b: jnp.mean(b["image"]), None, {"image": jnp.ones((0, 3))})


@pytest.mark.parametrize(
    "bounds", [(np.zeros(3), np.ones(3)), np.array([0.0, 1.0]), jnp.array([0.0, 1.0]), (0.0,), 1.0]
)
def test_bounds_are_two_numbers(bounds):
    with pytest.raises(ValueError, match=r"`bounds` must be two numbers, \(lowest, highest\)"):
        attacks.pgd(0.1, bounds=bounds)


def test_attack_and_loss_read_the_same_inputs():
    loss_fn = attacks.losses.cross_entropy(lambda w, x: x @ w)
    batch = {"image": jnp.ones((2, 3)), "raw": jnp.ones((2, 3)), "label": jnp.zeros(2, int)}
    with pytest.raises(ValueError, match="moves the inputs at key 'raw', and the loss reads those at 'image'"):
        attacks.fgsm(0.1, inputs_key="raw")(loss_fn, jnp.ones((3, 2)), batch)
