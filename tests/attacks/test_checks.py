"""What attacks refuse before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks.checks import check_key
from tests.attacks.cases import KEY, LOSS, PARAMS, make_batch


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


COUNTS = {
    "steps": [
        lambda n: attacks.bim(0.1, steps=n),
        lambda n: attacks.apgd(0.1, steps=n),
        lambda n: attacks.ensemble(0.1, steps=n),
        lambda n: attacks.deepfool(steps=n),
        lambda n: attacks.carlini_wagner(steps=n),
    ],
    "restarts": [lambda n: attacks.pgd(0.1, restarts=n)],
    "queries": [lambda n: attacks.square(0.1, queries=n), lambda n: attacks.ensemble(0.1, queries=n)],
    "max_iters": [lambda n: attacks.l2hess(0.1, max_iters=n)],
    "binary_search_steps": [lambda n: attacks.carlini_wagner(binary_search_steps=n)],
    "num_rivals": [lambda n: attacks.trust_region(0.1, num_rivals=n)],
    "num_targets": [lambda n: attacks.ensemble(0.1, num_targets=n)],
    "eot": [lambda n: attacks.fgsm(0.1, eot=n), lambda n: attacks.pgd(0.1, eot=n)],
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_whole(name):
    for make in COUNTS[name]:
        make(2.0)
        make(np.int64(2))
        with pytest.raises(ValueError, match=rf"^`{name}` must be a whole number of at least \d, got 2\.5\.$"):
            make(2.5)


NUMBERS = {
    "trust_region": lambda f, **more: attacks.trust_region(
        f(0.05), overshoot=f(0.02), radius_range=(f(0.01), f(0.1)), bounds=(f(0.0), f(1.0)), steps=5, **more
    ),
    "carlini_wagner": lambda f, **more: attacks.carlini_wagner(
        learning_rate=f(0.01), initial_weight=f(0.001), steps=5, binary_search_steps=2, **more
    ),
    "mi_fgsm": lambda f, **more: attacks.mi_fgsm(f(0.1), momentum=f(0.9), step_size=f(0.02), **more),
    "deepfool": lambda f, **more: attacks.deepfool(overshoot=f(0.02), bounds=(f(0.0), f(1.0)), **more),
    "apgd": lambda f, **more: attacks.apgd(f(0.1), norm="l2", steps=5, **more),
    "square": lambda f, **more: attacks.square(f(0.1), share=f(0.5), queries=5, **more),
    "fhsm": lambda f, **more: attacks.fhsm(f(0.1), rtol=f(1e-3), damping=f(1e-6), **more),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_take_the_dtype_of_the_inputs(name):
    batch = make_batch(PARAMS, n=4)
    with jax.enable_x64(True):
        want = NUMBERS[name](float, loop="device")(LOSS, PARAMS, batch, KEY)["image"]
        for kind in (np.float64, jnp.float64):
            got = NUMBERS[name](kind, loop="device")(LOSS, PARAMS, batch, KEY)["image"]
            assert got.dtype == want.dtype == jnp.float32
            np.testing.assert_array_equal(got, want)


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
