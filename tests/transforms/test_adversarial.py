"""The corrected gradient against autodiff of the mean loss over the mixed batch, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessabs
from tests.transforms.cases import gradient, loss_fn, make_batch, make_params


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.25, 0.5])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_the_gradient_of_the_mixed_mean_loss(fraction, norm):
    with jax.enable_x64(True):
        params = make_params(jnp.float64)
        batch = make_batch(dtype=jnp.float64)
        attack = hessabs.attacks.fgsm(0.1, norm=norm)
        tx = hessabs.adversarial_gradient(attack, max_fraction=0.5)
        got, _ = tx.update(
            gradient(params, batch),
            tx.init(params),
            params,
            loss_fn=loss_fn,
            batch=batch,
            adversarial_fraction=fraction,
        )
        replaced = int(16 * fraction)
        perturbed = attack(loss_fn, params, batch)["image"]
        image = jnp.concatenate([perturbed[:replaced], batch["image"][replaced:]])
        want = jax.grad(loss_fn)(params, {**batch, "image": image})
        assert got["w"].dtype == jnp.float64
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-12, atol=1e-14)


def test_without_a_fraction_it_is_the_largest():
    params, batch = make_params(), make_batch()
    tx = hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1), max_fraction=0.25)
    extra = {"loss_fn": loss_fn, "batch": batch}
    one, _ = tx.update(gradient(params, batch), tx.init(params), params, **extra)
    two, _ = tx.update(gradient(params, batch), tx.init(params), params, adversarial_fraction=0.25, **extra)
    np.testing.assert_array_equal(one["w"], two["w"])


def test_what_is_missing_is_named():
    tx = hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1))
    with pytest.raises(ValueError, match="needs params, batch"):
        tx.update(make_params(), tx.init(make_params()), loss_fn=loss_fn)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_the_fraction_must_lie_in_its_range(fraction):
    with pytest.raises(ValueError, match="`max_fraction` must lie in"):
        hessabs.adversarial_gradient(hessabs.attacks.fgsm(0.1), max_fraction=fraction)
