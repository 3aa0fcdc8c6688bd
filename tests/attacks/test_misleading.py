"""`evaluate` warns of what makes accuracy look better than it is, and of nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses, misleading, outcomes
from tests.attacks.cases import KEY, LOSS, PARAMS, fallen, logits_fn, make_batch

pytestmark = pytest.mark.sampled

BATCH = make_batch(PARAMS, n=30)


def look(network):
    """What is said of a network, without an attack."""
    loss_fn = losses.cross_entropy(jax.jit(network))
    right = outcomes.look(loss_fn, PARAMS, BATCH, "image", "linf").right
    return misleading.look(loss_fn, PARAMS, BATCH, "image", right).messages(~fallen(PARAMS, BATCH))


@pytest.mark.slow
def test_a_sound_network_under_sound_attacks_is_no_cause(recwarn):
    make = {"fgsm": attacks.fgsm, "pgd": lambda epsilon: attacks.pgd(epsilon, steps=5), "square": few_queries}
    attacks.evaluate(
        LOSS, PARAMS, BATCH, make, [0.0, 0.2], KEY, minimal={"walk": attacks.deepfool(norm="linf")}
    )
    attacks.evaluate(LOSS, PARAMS, BATCH, {"l2grad": attacks.l2grad}, [0.5, 2.0], norm="l2")
    assert not recwarn.list


def few_queries(epsilon):
    return attacks.square(epsilon, queries=50)


def test_zero_gradients():
    flat = losses.cross_entropy(lambda params, x: jax.lax.stop_gradient(logits_fn(params, x)))
    with pytest.warns(UserWarning, match="The gradient of 29 of 29 rightly classified examples is zero"):
        attacks.evaluate(flat, PARAMS, BATCH, {}, [])


@pytest.mark.parametrize(("scale", "seen"), [(1.0, False), (1000.0, True)])
def test_gradients_that_underflow_are_zero_and_said(scale, seen, recwarn):
    # In closed form, in float64: where the label is ahead by more than 104 no float32 gradient is left.
    batch = {"image": jnp.asarray(np.random.default_rng(0).uniform(0.2, 0.8, (40, 2)), jnp.float32)}
    batch["label"] = jnp.argmax(batch["image"], axis=1)
    ahead = scale * np.abs(np.diff(np.float64(batch["image"]), axis=1))[:, 0]
    weights = 2 * jnp.eye(2) - 1  # logits of +-(a - b): no probabilities
    attacks.evaluate(losses.cross_entropy(jax.jit(lambda w, x: scale / 2 * x @ w)), weights, batch, {}, [])
    said = [int(str(w.message).split()[3]) for w in recwarn if "is zero" in str(w.message)]
    assert bool(said) == seen
    if seen:
        assert np.sum(ahead > 104) <= said[0] <= np.sum(ahead > 87)


def test_a_network_that_is_not_deterministic():
    noise = np.random.default_rng(0)

    def drawn(rate):
        return noise.normal(size=np.shape(rate)).astype(np.float32)

    def noisy(params, x):
        rate = jax.lax.stop_gradient(x[0, 0, 0])
        draw = jax.pure_callback(drawn, jax.ShapeDtypeStruct((), jnp.float32), rate, vmap_method="sequential")
        return logits_fn(params, x) * (1 + 1e-3 * draw)

    (said,) = look(noisy)
    assert "it is not deterministic" in said


def test_examples_that_influence_each_other():
    def normalized(params, x):
        return logits_fn(params, 0.5 + (x - x.mean(axis=0)) / (x.std(axis=0) + 0.1))

    (said,) = look(normalized)
    assert "The logits of an example depend on the other examples of its batch" in said


def test_probabilities():
    (said,) = look(lambda params, x: jax.nn.softmax(logits_fn(params, x)))
    assert "The logits lie in [0, 1] and sum to 1 for each example, as probabilities do" in said


@pytest.mark.slow
def test_another_norm_or_other_bounds():
    with pytest.warns(
        UserWarning, match=r"Results of l2grad lie outside .*: \d+ of 29 at epsilon 0\.5\. Are its"
    ):
        rows = attacks.evaluate(LOSS, PARAMS, BATCH, {"l2grad": attacks.l2grad}, [0.5], norm="l1")
    assert rows[1].accuracy > 0.8
    wide = {"fgsm": lambda epsilon: attacks.fgsm(epsilon, bounds=None)}
    with pytest.warns(UserWarning, match="Results of fgsm lie outside the ball or the bounds"):
        attacks.evaluate(LOSS, PARAMS, BATCH, wide, [0.5])


@pytest.mark.slow
def test_a_black_box_that_is_stronger():
    def masked(params, x):  # rounds to steps of 1/50, the gradient all noise of small waves
        z = logits_fn(params, jnp.round(x * 50) / 50)
        return jax.lax.stop_gradient(z) + 1e-3 * jnp.sin(1e3 * jnp.sum(x, axis=(1, 2)))[:, None] * jnp.arange(4)

    make = {"pgd": lambda epsilon: attacks.pgd(epsilon, steps=3), "square": few_queries}
    message = r"At epsilon 0\.2 square, which follows no gradient, fells \d+ examples that no attack along"
    with pytest.warns(UserWarning, match=message):
        attacks.evaluate(losses.cross_entropy(masked), PARAMS, BATCH, make, [0.2], KEY)


@pytest.mark.parametrize("make", [attacks.fgsm, attacks.fhsm, attacks.pgd, attacks.square, attacks.ensemble])
def test_an_epsilon_in_grey_levels(make, recwarn):
    make(1.0)
    make(8.0, bounds=(0.0, 255.0))
    make(8.0, bounds=None)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"`epsilon` 8 exceeds the width of `bounds` \(0\.0, 1\.0\)"):
        make(8)


def test_a_network_that_has_changed_since_it_was_compiled():
    now = {"params": PARAMS}
    loss_fn = losses.cross_entropy(lambda _, x: logits_fn(now["params"], x))
    before = attacks.evaluate(loss_fn, (), BATCH, {}, [])[0].accuracy
    now["params"] = jax.tree.map(lambda x: -x, PARAMS)
    with pytest.warns(UserWarning, match="The network has changed since it was compiled"):
        assert attacks.evaluate(loss_fn, (), BATCH, {}, [])[0].accuracy == before  # of what was compiled
