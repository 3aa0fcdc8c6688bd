"""The corrected gradient against autodiff of the mean loss over the mixed batch, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessabs
from tests.transforms.cases import gradient, loss_fn, make_batch, make_params

pytestmark = pytest.mark.sampled


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_the_gradient_of_the_mixed_mean_loss(norm):
    with jax.enable_x64(True):
        params, batch = make_params(jnp.float64), make_batch(dtype=jnp.float64)
        attack = hessabs.attacks.fgsm(0.1, norm=norm)
        tx = hessabs.adversarial_gradient(attack, max_fraction=0.5)
        clean = jax.jit(gradient)(params, batch)
        perturbed = np.asarray(jax.jit(lambda: attack(loss_fn, params, batch))()["image"])

        @jax.jit
        def update(fraction):
            extra = {"loss_fn": loss_fn, "batch": batch, "adversarial_fraction": fraction}
            return tx.update(clean, tx.init(params), params, **extra)[0]

        for fraction in (0.0, 0.05, 0.25, 0.5):
            replaced = int(16 * fraction)
            image = np.concatenate([perturbed[:replaced], batch["image"][replaced:]])
            got, want = update(fraction), jax.jit(gradient)(params, {**batch, "image": image})
            assert got["w"].dtype == jnp.float64
            for name in want:
                np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_without_a_fraction_it_is_the_largest():
    params, batch = make_params(), make_batch()
    tx = hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1), max_fraction=0.25)
    extra = {"loss_fn": loss_fn, "batch": batch}
    one, _ = tx.update(gradient(params, batch), tx.init(params), params, **extra)
    two, _ = tx.update(gradient(params, batch), tx.init(params), params, adversarial_fraction=0.25, **extra)
    np.testing.assert_array_equal(one["w"], two["w"])


def make_update(max_fraction, **options):
    params, batch = make_params(), make_batch()
    tx = hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1), max_fraction=max_fraction)

    def update(fraction):
        extra = {"loss_fn": loss_fn, "batch": batch, "adversarial_fraction": fraction, **options}
        return tx.update(gradient(params, batch), tx.init(params), params, **extra)[0]["w"]

    return update


@pytest.mark.slow
def test_the_fraction_of_a_rule_is_its_own_largest():
    rule = hessabs.batch_size.with_adversarial(hessabs.batch_size.timer(16, 64, every=16), 0.5)
    state, params, batch = rule.init(), make_params(), make_batch()
    got = jax.jit(make_update(float(state.adversarial_fraction)))(state.adversarial_fraction)
    mixed = hessabs.attacks.replace_fraction(hessabs.attacks.fgsm(0.1), loss_fn, params, batch, 0.5)
    np.testing.assert_allclose(got, gradient(params, mixed)["w"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("max_fraction", [0.2, 0.01, 0.0])  # the second makes a head of no examples
def test_a_fraction_beyond_the_largest_is_refused_or_shows(max_fraction):
    update = make_update(max_fraction)
    with pytest.raises(ValueError, match=rf"at most max_fraction={max_fraction}, got 0\.5"):
        update(0.5)
    assert np.isnan(jax.jit(update)(0.5)).all()
    assert np.isfinite(jax.jit(update)(max_fraction)).all()


def test_a_loss_with_new_statistics_is_in_training_mode():
    update = make_update(0.2, loss_fn=lambda params, batch: (loss_fn(params, batch), {"mean": jnp.zeros(3)}))
    with pytest.raises(ValueError, match=r"one scalar, .* hessabs\.attacks\.replace_fraction"):
        update(0.2)


def test_scalars_of_a_batch_are_no_examples():
    params, batch = make_params(), make_batch()
    tx = hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1), max_fraction=0.5)

    def scaled(params, batch):
        return batch["a_scale"] * loss_fn(params, batch)

    def update(loss_fn, batch):
        clean = jax.grad(loss_fn)(params, batch)
        return tx.update(clean, tx.init(params), params, loss_fn=loss_fn, batch=batch)[0]

    got, want = update(scaled, {"a_scale": jnp.float32(2.0), **batch}), update(loss_fn, batch)
    np.testing.assert_allclose(got["w"], 2 * want["w"], rtol=1e-5, atol=1e-7)


def test_what_is_missing_is_named():
    tx = hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1))
    with pytest.raises(ValueError, match="needs params, batch"):
        tx.update(make_params(), tx.init(make_params()), loss_fn=loss_fn)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_the_fraction_must_lie_in_its_range(fraction):
    with pytest.raises(ValueError, match="`max_fraction` must lie in"):
        hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1), max_fraction=fraction)


@pytest.mark.parametrize("axis_name", [None, "data"])
def test_a_loss_over_what_a_mask_leaves(axis_name):
    mask = jnp.array([0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0, 1, 1, 0, 1], jnp.float32)

    def masked(params, batch):
        errors = jnp.sum((batch["image"].reshape(len(batch["mask"]), -1) @ params["w"]) ** 2, axis=-1)
        return jnp.sum(batch["mask"] * errors) / jnp.sum(batch["mask"])

    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)}
    batch = {"image": jnp.asarray(rng.uniform(0.2, 0.8, (16, 3)), jnp.float32), "mask": mask}
    attack = hessabs.attacks.fgsm(0.1)
    tx = hessabs.adversarial_gradient(
        attack, max_fraction=0.5, weight=lambda batch: batch["mask"], axis_name=axis_name
    )

    def update(g, batch):
        return tx.update(g, tx.init(params), params, loss_fn=masked, batch=batch)[0]

    clean = jax.jit(jax.grad(masked))(params, batch)
    perturb = jax.jit(lambda part: attack(masked, params, part)["image"])
    if axis_name is None:
        got, heads = jax.jit(update)(clean, batch), [slice(0, 8)]
    else:  # the first and the third of four devices have a head in which nothing counts
        shares = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)
        got = jax.tree.map(lambda x: x[0], jax.pmap(update, "data", in_axes=(None, 0))(clean, shares))
        heads = [slice(i, i + 2) for i in range(0, 16, 4)]
    image = np.array(batch["image"])
    for head in heads:
        part = {"image": image[head], "mask": np.asarray(mask)[head]}
        image[head] = np.where(part["mask"][:, None] > 0, perturb(part), part["image"])
    want = jax.jit(jax.grad(masked))(params, {**batch, "image": image})
    np.testing.assert_allclose(got["w"], want["w"], rtol=2e-5)


@pytest.mark.usefixtures("four_devices")
def test_each_device_has_random_starts_of_its_own():
    def noise(loss_fn, params, batch, key=None):
        return {**batch, "image": jax.random.normal(key, batch["image"].shape)}

    def loss(w, batch):
        return jnp.mean(batch["image"] @ w)

    tx = hessabs.adversarial_gradient(noise, max_fraction=1.0, axis_name="data")
    w, batch = jnp.ones(3), {"image": jnp.zeros((4, 1, 3))}

    def update(batch, key):
        gradient = jax.lax.pmean(jax.grad(loss)(w, batch), "data")
        return tx.update(gradient, tx.init(w), w, loss_fn=loss, batch=batch, key=key)[0]

    keys = jnp.broadcast_to(jax.random.key(0), (4,))
    got = jax.pmap(update, "data")(batch, keys)[0]
    drawn = [jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (1, 3))[0] for i in range(4)]
    np.testing.assert_allclose(got, np.mean(drawn, axis=0), rtol=1e-6)
