"""Losses: what they refuse, each with what to do, and what their gradients are where the network is sure."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses
from tests.attacks.cases import mostly_slow

pytestmark = pytest.mark.sampled

N, CLASSES = 4, 3
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(N, CLASSES)), jnp.float32)
LABELS = jnp.arange(N) % CLASSES


def batch_of(labels, **more):
    return {"image": jnp.full((N, 2), 0.5), "label": labels, **more}


WRONG_LABELS = {
    "a column": (LABELS[:, None], r"The labels must be int \(n,\), got int32\[4, 1\]: pass labels\[:, 0\]"),
    "one-hot": (jax.nn.one_hot(LABELS, CLASSES), r"got float32\[4, 3\]: if they are one-hot pass jnp\.argmax"),
    "float": (LABELS * 1.0, r"got float32\[4\]: pass labels\.astype\(jnp\.int32\)"),
    "pixels": (jnp.zeros((N, 5, 5), int), r"got int32\[4, 5, 5\]: labels of pixels or tokens are out of scope"),
    "too few": (LABELS[:2], r"one of the labels for each row of logits, got 2 for 4"),
    "a scalar": (jnp.int32(0), r"got int32\[\]: there is one for each example"),
}
WRONG_LOGITS = {
    "flat": (LOGITS[:, 0], r"got float32\[4\]: a model with the one logit z has the logits \[0, z\]"),
    "a column": (LOGITS[:, :1], r"got float32\[4, 1\]: a model with the one logit z has the logits \[0, z\]"),
    "pixels": (jnp.zeros((N, 5, 5, CLASSES)), r"logits of pixels or tokens are out of scope"),
    "a pair": ((LOGITS, None), r"got a tuple: return the logits alone"),
}


def calls(loss_fn, batch):
    """All that reads labels: the mean, example by example, under jit, an attack that traces, `evaluate`."""
    rows = jax.jit(lambda b: losses.per_example(loss_fn, None, b, "image"))
    walk = jax.jit(lambda b: attacks.deepfool(steps=1, num_rivals=1)(loss_fn, None, b))
    return {
        "mean": lambda: loss_fn(None, batch),
        "mean under jit": lambda: jax.jit(loss_fn)(None, batch),
        "rows under jit": lambda: rows(batch),
        "fgsm": lambda: attacks.fgsm(0.1)(loss_fn, None, batch),
        "deepfool under jit": lambda: walk(batch),
        "evaluate": lambda: attacks.evaluate(loss_fn, None, batch, {}, []),
    }


@pytest.mark.parametrize(
    ("make", "wrong"),
    [("margin", "float"), ("dlr", "pixels"), *(("cross_entropy", wrong) for wrong in WRONG_LABELS)],
)
def test_refuses_labels(make, wrong):
    labels, message = WRONG_LABELS[wrong]
    for call in calls(getattr(losses, make)(lambda params, x: LOGITS), batch_of(labels)).values():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("wrong", WRONG_LOGITS)
def test_refuses_logits(wrong):
    logits, message = WRONG_LOGITS[wrong]
    for call in calls(losses.cross_entropy(lambda params, x: logits), batch_of(LABELS)).values():
        with pytest.raises(ValueError, match=message):
            call()


def test_what_is_advised_is_what_was_meant():
    z = LOGITS[:, 0]
    two = losses.cross_entropy(jax.jit(lambda params, x: jnp.stack([0 * z, z + x[:, 0] - 0.5], axis=1)))
    batch = batch_of((z > 0).astype(int))
    want = np.log1p(np.exp(-np.abs(np.float64(z)))).mean()
    assert float(jax.jit(two)(None, batch)) == pytest.approx(want, rel=1e-6)
    assert attacks.evaluate(two, None, batch, {}, [])[0].accuracy == 1.0


def test_refuses_targets_and_warns_of_those_that_are_the_label():
    loss_fn = losses.cross_entropy(lambda params, x: LOGITS + x[:, :1], targeted=True)
    with pytest.raises(
        ValueError, match=r"The targets must be int \(n,\), got int32\[4, 1\]: pass targets\[:, 0\]"
    ):
        loss_fn(None, batch_of(LABELS, target=LABELS[:, None]))

    def attack(target):  # it sees the batch, and is not computed
        jax.eval_shape(lambda: attacks.fgsm(0.1)(loss_fn, None, batch_of(LABELS, target=target)))

    other = (LABELS + 1) % CLASSES
    attack(other)
    with pytest.warns(UserWarning, match="1 of 4 targets equal the label"):
        attack(other.at[1].set(LABELS[1]))


def test_kl_takes_probabilities():
    loss_fn = losses.kl(lambda params, x: LOGITS, label_key="label")
    for labels, message in (
        (LABELS, r"must be \(4, 3\), as the logits, got int32\[4\]"),
        (jnp.full((N, 2), 0.5), r"must be \(4, 3\), as the logits, got float32\[4, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_fn(None, batch_of(labels))
    for labels in (LOGITS, jnp.ones((N, CLASSES))):
        with pytest.raises(ValueError, match="must be at least 0 and sum to 1"):
            attacks.pgd(0.1, steps=1)(loss_fn, None, batch_of(labels), jax.random.key(0))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_cross_entropy_keeps_its_gradient_where_the_network_is_sure(scale, targeted):
    # The closed form in float64, of the float32 logits: p_k for the rivals, -sum of these for the class.
    z = np.float64(np.float32(scale * np.random.default_rng(1).normal(size=(200, 5))))
    wanted = z.argmax(axis=1) if not targeted else np.arange(200) % 5
    rivals = z.copy()
    rivals[np.arange(200), wanted] = -np.inf
    behind = rivals - z[np.arange(200), wanted][:, None]
    log_total = np.logaddexp.reduce(np.concatenate([behind, np.zeros((200, 1))], axis=1), axis=1)
    want = np.exp(behind - log_total[:, None])
    want[np.arange(200), wanted] = -want.sum(axis=1)
    loss_fn = losses.cross_entropy(lambda params, x: x, targeted=targeted)
    batch = {"image": jnp.asarray(z, jnp.float32), "target" if targeted else "label": jnp.asarray(wanted)}

    def total(x):
        return jnp.sum(losses.per_example(loss_fn, None, {**batch, "image": x}, "image")[0])

    value, got = jax.jit(jax.value_and_grad(total))(batch["image"])
    sign = -1 if targeted else 1
    kept = np.abs(want) > 1e-35  # smaller ones are 0 in float32
    np.testing.assert_allclose(sign * np.float64(got)[kept], want[kept], rtol=2e-4)
    np.testing.assert_allclose(np.float64(got)[~kept], 0, atol=1e-35)
    np.testing.assert_allclose(sign * float(value), log_total.sum(), rtol=1e-5)
    if scale > 1 and not targeted:  # what log_softmax loses: gradients far below the rounding of 1
        assert (np.abs(want[kept]) < 1e-12).any()


@pytest.mark.parametrize("scale", mostly_slow([1.0, 30.0, 1000.0], [30.0]))
def test_robust_accuracy_of_a_network_that_is_sure_is_the_exact_one(scale):
    # In closed form: a linear network of two classes is left after epsilon times the L1 norm of the difference.
    rng = np.random.default_rng(0)
    weights = jnp.asarray(scale * rng.normal(size=(20, 2)), jnp.float32)
    batch = {"image": jnp.asarray(rng.uniform(-1, 1, (30, 20)), jnp.float32)}
    ahead = np.float64(batch["image"]) @ np.diff(np.float64(weights), axis=1)[:, 0]
    batch["label"] = jnp.asarray(ahead > 0, jnp.int32)
    exact = np.abs(ahead) > 0.1 * np.abs(np.diff(np.float64(weights), axis=1)).sum()
    loss_fn = losses.cross_entropy(jax.jit(lambda w, x: x @ w))
    make = {"bim": lambda epsilon: attacks.bim(epsilon, bounds=None)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        row = attacks.evaluate(loss_fn, weights, batch, make, [0.1], bounds=None)[1]
    assert 0.1 < exact.mean() < 0.9
    lost = np.abs(ahead) > 87  # where float32 has no gradient left; these are warned of
    np.testing.assert_array_equal(row.withstood[~lost], exact[~lost])
    assert [("is zero" in str(w.message)) for w in caught] == [True] * bool(lost.any())


def test_masked_classes_are_no_fault():
    z = jnp.array([[2.0, 1.0, -jnp.inf], [1.0, 2.0, -jnp.inf]])
    batch = {"image": jnp.zeros((2, 1)), "label": jnp.array([0, 0])}
    loss_fn = losses.cross_entropy(lambda params, x: z)
    values, fell = jax.jit(lambda: losses.per_example(loss_fn, None, batch, "image"))()
    np.testing.assert_allclose(values, np.log1p(np.exp([-1.0, 1.0])), rtol=1e-6)
    assert fell.tolist() == [False, True]


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.dlr])
def test_losses_of_classes_refuse_soft_labels(loss):
    with pytest.raises(ValueError, match=r"takes classes for labels, got soft_labels=True; .* use `kl`"):
        loss(lambda w, x: x @ w, soft_labels=True)


@pytest.mark.slow
def test_a_class_that_is_masked_out_changes_no_divergence():
    rng = np.random.default_rng(0)
    images, weights = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((8, 5), (5, 3)))

    def masked(w, x):
        return jnp.concatenate([x @ w, jnp.full((len(x), 1), -jnp.inf)], axis=1)

    found = []
    for network in (lambda w, x: x @ w, masked):
        batch = {"image": images, "probabilities": jax.nn.softmax(network(weights, images))}
        loss_fn, moved = losses.kl(network), {**batch, "image": 0.5 * images}
        attack = attacks.pgd(0.5, steps=8, restarts=2, bounds=None)
        worst = attack(loss_fn, weights, batch, jax.random.key(0))["image"]
        gradient = jax.grad(lambda x, f=loss_fn, b=moved: f(weights, {**b, "image": x}))(moved["image"])
        found.append((loss_fn(weights, moved), gradient, worst))
    p, q = (np.asarray(jax.nn.log_softmax(x @ weights), np.float64) for x in (images, 0.5 * images))
    np.testing.assert_allclose(found[0][0], np.mean(np.sum(np.exp(p) * (p - q), axis=1)), rtol=1e-5)
    for plain, with_mask in zip(*found, strict=True):
        np.testing.assert_allclose(with_mask, plain, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(found[1][2] - images).max()) > 0.1
