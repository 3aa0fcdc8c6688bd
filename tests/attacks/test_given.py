"""What an attack finds is a constant, and the same on meshes with explicit axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hessabs import attacks
from hessabs.attacks import losses
from tests.attacks.cases import CASES, KEY, LOSS, PARAMS, logits_fn, make_batch

pytestmark = pytest.mark.sampled

BATCH = make_batch(PARAMS, n=4)
# One of each attack: what is given goes the same way in every norm.
KINDS = ("trust_region-l2", "fgsm", "l2hess", "pgd-l2", "apgd-linf", "ensemble", "carlini_wagner")
NAMES = tuple({name.partition("-")[0]: name for name in reversed(CASES)}.values())


@pytest.mark.parametrize("name", sorted(NAMES, key=lambda name: name != "l2grad"))
def test_no_derivative_goes_through_an_attack(name):
    attack = CASES[name].make(0.2)
    given = attack(LOSS, PARAMS, BATCH, KEY)
    want = jax.grad(LOSS)(PARAMS, given)

    def through(params):
        return LOSS(params, attack(LOSS, params, BATCH, KEY))

    got = jax.jit(jax.grad(through))(PARAMS)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_no_derivative_goes_through_what_the_loss_closes_over(name):
    attack = CASES[name].make(0.2)
    want = jax.grad(LOSS)(PARAMS, attack(LOSS, PARAMS, BATCH, KEY))

    def through(params):
        closed = losses.cross_entropy(lambda _, x: logits_fn(params, x))
        return LOSS(params, attack(closed, None, BATCH, KEY))

    for gradient in (jax.grad(through), jax.jit(jax.grad(through))):
        for a, b in zip(jax.tree.leaves(gradient(PARAMS)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("attack", [attacks.l2grad(0.1), attacks.l2hess(0.1), attacks.bim(0.1, norm="l2")])
def test_a_loss_that_closes_over_its_params_against_the_derivative_of_its_formula(attack):
    def loss(w, batch):
        return jnp.mean((batch["image"] @ w) ** 2 * jnp.sum(batch["image"], axis=1))

    w, batch = jnp.array([1.0, -2.0]), {"image": jnp.array([[0.3, 0.6], [0.5, 0.4]])}
    x = np.asarray(attack(loss, w, batch)["image"])
    want = np.mean(2 * (x @ w * x.sum(axis=1))[:, None] * x, axis=0)
    got = jax.grad(lambda w: loss(w, attack(lambda _, found: loss(w, found), None, batch)))(w)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_else_is_in_the_batch_keeps_its_derivative():
    def loss(w, batch):
        return jnp.mean(batch["scale"] * jnp.sum(batch["image"] * w, axis=1))

    def through(scale):
        batch = {"image": jnp.full((2, 3), 0.5), "scale": scale}
        return loss(jnp.ones(3), attacks.l2grad(0.3)(loss, jnp.ones(3), batch))

    # 3 entries at 0.5 + 0.3 / sqrt(3), and half of it for each example.
    want = 3 * (0.5 + 0.3 / np.sqrt(3)) / 2
    np.testing.assert_allclose(jax.grad(through)(jnp.ones(2)), [want, want], rtol=1e-6)


@pytest.mark.slow
def test_params_bound_to_the_logits_are_constant_too():
    def logits(w, _, x):
        return x @ w

    def through(w):
        loss_fn = losses.cross_entropy(jax.tree_util.Partial(logits, w))
        return jnp.sum(attacks.pgd(0.1, steps=2, norm="l2", random_start=False)(loss_fn, (), batch)["image"])

    batch = {"image": jnp.full((2, 3), 0.5), "label": jnp.array([0, 1])}
    assert not np.any(jax.grad(through)(jnp.arange(6.0).reshape(3, 2)))


@pytest.mark.slow
@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("name", sorted(NAMES, key=lambda name: name != "pgd-linf"))
def test_on_explicit_axes_it_finds_what_one_device_does(name):
    mesh = jax.make_mesh((4,), ("data",))  # its axes are explicit by default
    attack = CASES[name].make(0.2)
    spread = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    got = attack(LOSS, PARAMS, spread, KEY)["image"]
    assert got.sharding == spread["image"].sharding
    np.testing.assert_allclose(got, attack(LOSS, PARAMS, BATCH, KEY)["image"], atol=10 * CASES[name].tolerance)


@pytest.mark.slow
@pytest.mark.usefixtures("four_devices")
def test_evaluation_on_explicit_axes():
    mesh = jax.make_mesh((4,), ("data",))
    spread = jax.device_put(BATCH, NamedSharding(mesh, PartitionSpec("data")))
    params = jax.device_put(PARAMS, NamedSharding(mesh, PartitionSpec()))
    rows = [
        attacks.evaluate(LOSS, *given, {"fgsm": attacks.fgsm}, [0.2])
        for given in ((PARAMS, BATCH), (params, spread))
    ]
    for want, got in zip(*rows, strict=True):
        np.testing.assert_array_equal(got.withstood, want.withstood)
