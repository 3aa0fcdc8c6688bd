"""Attacks against closed forms and NumPy: losses, norms, Newton directions, boundaries of classifiers."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses, norms
from hessabs.attacks.apgd import checkpoints
from tests.attacks.cases import KEY, LOSS, PARAMS, logits_fn, make_batch, mostly_slow, size_of

pytestmark = [pytest.mark.sampled, pytest.mark.optimised]

ROUNDING = 1e-5


def linear(weights, inputs):
    return inputs.reshape(inputs.shape[0], -1) @ weights


def linear_problem(seed=0, n=6, pixels=5, classes=4):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(pixels, classes))
    image = rng.uniform(0.4, 0.6, (n, pixels))
    batch = {"image": jnp.asarray(image, jnp.float32), "label": jnp.asarray((image @ weights).argmax(1))}
    return jnp.asarray(weights, jnp.float32), batch


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("name", ["cross_entropy", "margin", "dlr"])
def test_losses(name, targeted):
    z = np.random.default_rng(1).normal(size=(7, 5))
    y, t = np.arange(7) % 5, (np.arange(7) + 2) % 5
    batch = {"image": jnp.asarray(z, jnp.float32), "label": jnp.asarray(y), "target": jnp.asarray(t)}
    rows, wanted = np.arange(7), t if targeted else y
    ordered, others = -np.sort(-z, 1), z.copy()
    others[rows, wanted] = -np.inf
    spread = ordered[:, 0] - (ordered[:, 2:4].mean(1) if targeted else ordered[:, 2])
    sign = 1 if targeted else -1
    want = {
        "cross_entropy": sign * log_softmax(z)[rows, wanted],
        "margin": sign * (z[rows, wanted] - others.max(1)),
        "dlr": ((z[rows, t] if targeted else others.max(1)) - z[rows, y]) / spread,
    }[name]
    loss_fn = getattr(losses, name)(lambda params, x: x, targeted=targeted)
    values, fell = losses.per_example(loss_fn, None, batch, "image")
    np.testing.assert_allclose(values, want, rtol=1e-5)
    np.testing.assert_array_equal(fell, (z.argmax(1) == wanted) == targeted)
    np.testing.assert_allclose(loss_fn(None, batch), want.mean(), rtol=1e-5)


def test_kl_and_a_loss_of_ones_own():
    z = np.random.default_rng(2).normal(size=(6, 3))
    p = np.exp(log_softmax(np.random.default_rng(3).normal(size=(6, 3))))
    p[0] = [0, 1, 0]
    batch = {"image": jnp.asarray(z, jnp.float32), "probabilities": jnp.asarray(p, jnp.float32)}
    values, fell = losses.per_example(losses.kl(lambda params, x: x), None, batch, "image")
    entropy = np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1)
    np.testing.assert_allclose(values, entropy - (p * log_softmax(z)).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(fell, z.argmax(1) != p.argmax(1))


@pytest.mark.slow
def test_the_weights_of_a_loss_do_not_matter():
    batch = make_batch(PARAMS)
    batch["weight"] = jnp.linspace(1e-3, 1e3, 8)

    def weighted(params, batch):
        values, _ = losses.per_example(LOSS, params, batch, "image")
        return jnp.sum(values * batch["weight"]) / jnp.sum(batch["weight"])

    def plain(params, batch):
        return LOSS(params, batch)

    attack = attacks.pgd(0.1, norm="l2", steps=4)
    got, want = (attack(loss, PARAMS, batch, KEY)["image"] for loss in (weighted, plain))
    np.testing.assert_allclose(got, want, atol=ROUNDING)


@pytest.mark.parametrize(("name", "classes"), [("dlr", 2), ("dlr", 3)])
def test_refuses_a_ratio_of_too_few_logits(name, classes):
    targeted = classes == 3
    batch = {"image": jnp.zeros((1, classes)), "label": jnp.zeros(1, int), "target": jnp.ones(1, int)}
    with pytest.raises(ValueError, match=rf"needs at least {classes + 1} classes, got {classes}"):
        losses.dlr(lambda params, x: x, targeted=targeted)(None, batch)


def test_refuses_targeted_kl():
    with pytest.raises(ValueError, match="`kl` has no targeted form"):
        losses.kl(logits_fn, targeted=True)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_is_the_nearest_point_of_the_ball(norm):
    rng = np.random.default_rng(0)
    delta = jnp.asarray(rng.normal(size=(20, 6)), jnp.float32)
    near = jax.jit(jax.vmap(lambda d: norms.project(d, 0.7, norm)))(delta)
    assert size_of(near, norm).max() <= 0.7 * (1 + 1e-6)
    # Optimality: no point of the ball makes an acute angle with what was cut off.
    draw = jax.jit(jax.vmap(lambda k: norms.random_in_ball(k, delta[0], 0.7, norm)))
    delta, near, inside = (np.asarray(x) for x in (delta, near, draw(jax.random.split(KEY, 500))))
    assert size_of(inside, norm).max() <= 0.7 * (1 + 1e-6)
    angles = np.einsum("nd,nmd->nm", delta - near, inside[None] - near[:, None])
    assert angles.max() <= 1e-5
    corner = np.asarray(jax.jit(jax.vmap(lambda d: 0.7 * norms.steepest(d, norm)))(delta))
    assert np.all(np.sum(delta * corner, 1) >= (delta @ inside.T).max(1) - 1e-5)


def test_random_points_fill_the_ball():
    like = jnp.zeros(3)
    for norm, share in (("linf", 1 / 8), ("l2", 1 / 8), ("l1", 1 / 8)):  # of the volume, within half the radius
        draw = jax.jit(jax.vmap(lambda k, norm=norm: norms.random_in_ball(k, like, 2.0, norm)))
        points = np.asarray(draw(jax.random.split(KEY, 4000)))
        assert abs((size_of(points, norm) <= 1).mean() - share) < 0.02  # four standard deviations
        np.testing.assert_allclose(points.mean(0), 0, atol=0.08)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_newton_direction_is_that_of_the_pseudo_inverse(norm):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        hidden, head = (jnp.asarray(rng.normal(size=s)) for s in ((12, 10), (10, 4)))

        def relu_logits(params, x):
            return jax.nn.relu(x @ params[0]) @ params[1]

        loss_fn = losses.cross_entropy(relu_logits)
        image = jnp.asarray(rng.uniform(0.3, 0.7, (5, 12)))
        batch = {"image": image, "label": jnp.arange(5) % 4}
        factory = attacks.fhsm if norm == "linf" else attacks.l2hess
        got = factory(0.01, rtol=1e-9, damping=1e-9)((loss_fn), (hidden, head), batch)["image"] - image

        # In closed form, but for kinks: J^T (diag p - p p^T) J and J^T (p - y).
        for i in range(5):
            before = np.asarray(image[i] @ hidden)
            jacobian = np.asarray(hidden) * (before > 0) @ np.asarray(head)  # (pixels, classes)
            p = np.exp(log_softmax(np.maximum(before, 0)[None] @ np.asarray(head)))[0]
            h = jacobian @ (np.diag(p) - np.outer(p, p)) @ jacobian.T
            g = jacobian @ (p - np.eye(4)[i % 4])
            assert np.linalg.matrix_rank(h, tol=1e-9) <= 3
            newton = np.linalg.pinv(h, rcond=1e-9) @ g
            want = np.sign(newton) if norm == "linf" else newton / np.linalg.norm(newton)
            np.testing.assert_allclose(got[i], 0.01 * want, atol=1e-6)


def test_negative_curvature_falls_back_to_the_gradient():
    def loss(w, batch):
        return -jnp.mean(jnp.sum(w * batch["image"] ** 2, axis=1))

    batch = {"image": jnp.array([[0.5, 0.25]])}
    got = attacks.l2hess(0.1)(loss, jnp.array([1.0, 2.0]), batch)["image"]
    np.testing.assert_allclose(got, batch["image"] - 0.1 / np.sqrt(2), atol=1e-6)


def numpy_trust_region(weights, x, label, *, radius, norm, adaptive, ratio, rival, steps):
    """The attack on one example of a quadratic network z = W'x + (W'x)^2 / 4, written out."""
    smallest, largest = {"l2": (0.0005, 0.05), "linf": (0.0001, 0.01)}[norm]
    smallest, largest = min(radius, smallest), max(radius, largest)

    def measure(x, target):
        u = weights.T @ x
        z, slope = u + u**2 / 4, weights * (1 + u / 2)
        return z, z[label] - z[target], slope[:, target] - slope[:, label]

    def dual(g):
        return np.abs(g).sum() if norm == "linf" else np.linalg.norm(g)

    z, _, _ = measure(x, label)
    if z.argmax() != label:
        return x
    rivals = [k for k in np.argsort(-z, kind="stable") if k != label]
    distances = [measure(x, k)[1] / dual(measure(x, k)[2]) for k in rivals]
    target = rivals[int(np.argmin(distances) if rival == "best" else np.argmax(distances))]
    before = {}
    for i in range(steps):
        z, margin, g = measure(x, target)
        if i and adaptive:
            fall = before["margin"] - margin if ratio == "corrected" else before["z"] - z[label]
            agreement = fall / before["predicted"]
            factor = 1.2 if agreement > 0.9 else 1 / 1.2 if agreement < 0.5 else 1.0
            radius = min(max(radius * factor, smallest), largest)
        if z.argmax() != label:
            return x
        length = 1.02 * (min(radius, max(margin, 0) / dual(g)) + 1e-4)
        step = length * (np.sign(g) if norm == "linf" else g / np.linalg.norm(g))
        moved = np.clip(x + step, 0, 1)
        predicted = g @ (moved - x) if ratio == "corrected" else length
        before = {"margin": margin, "z": z[label], "predicted": predicted}
        if ratio == "published" and adaptive:
            radius = length
        x = moved
    return x


@pytest.mark.parametrize(
    ("norm", "adaptive", "ratio", "rival"),
    mostly_slow(
        list(itertools.product(["l2", "linf"], [True, False], ["corrected", "published"], ["best", "hardest"])),
        [("l2", True, "corrected", "best"), ("l2", False, "published", "hardest"),
         ("linf", True, "published", "hardest"), ("linf", False, "corrected", "hardest"),
         ("linf", False, "published", "best")],  # every pair
    ),
)  # fmt: skip
def test_trust_region_against_numpy(norm, adaptive, ratio, rival):
    def quadratic(weights, x):
        u = x @ weights
        return u + u**2 / 4

    options = {"norm": norm, "adaptive": adaptive, "ratio": ratio, "rival": rival, "steps": 25}
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        weights, image = rng.normal(size=(6, 5)), rng.uniform(0.05, 0.95, (8, 6))
        u = image @ weights
        batch = {"image": jnp.asarray(image), "label": jnp.asarray((u + u**2 / 4).argmax(1))}
        attack = attacks.trust_region(0.01, **options)
        got = attack(losses.margin(quadratic), jnp.asarray(weights), batch)["image"]
        for i in range(8):
            want = numpy_trust_region(weights, image[i], int(batch["label"][i]), radius=0.01, **options)
            np.testing.assert_allclose(got[i], want, atol=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_reaches_the_nearest_boundary_of_a_linear_classifier(norm):
    weights, batch = linear_problem()
    got = attacks.deepfool(norm=norm, bounds=None)(losses.margin(linear), weights, batch)["image"]
    w, x, y = (
        np.asarray(weights, np.float64),
        np.asarray(batch["image"], np.float64),
        np.asarray(batch["label"]),
    )
    for i in range(len(y)):
        others = [k for k in range(4) if k != y[i]]
        order = 2 if norm == "l2" else 1
        distances = [
            x[i] @ (w[:, y[i]] - w[:, k]) / np.linalg.norm(w[:, y[i]] - w[:, k], order) for k in others
        ]
        moved = size_of(np.asarray(got[i : i + 1]) - x[i : i + 1], norm)[0]
        np.testing.assert_allclose(moved, 1.02 * (min(distances) + 1e-4), rtol=1e-4)


def test_carlini_wagner_finds_the_smallest_perturbation_of_a_linear_classifier():
    weights, batch = linear_problem()
    attack = attacks.carlini_wagner(steps=300, binary_search_steps=8, initial_weight=0.1)
    got = attack(losses.margin(linear), weights, batch)
    smallest = attacks.deepfool()(losses.margin(linear), weights, batch)["image"] - batch["image"]
    moved = size_of(got["image"] - batch["image"], "l2")
    assert losses.per_example(losses.margin(linear), weights, got, "image")[1].all()
    assert np.all(moved <= 1.03 * size_of(smallest, "l2"))


def test_confidence_is_the_lead():
    weights, batch = linear_problem()
    attack = attacks.carlini_wagner(steps=200, binary_search_steps=6, initial_weight=0.1, confidence=0.2)
    got = attack(losses.margin(linear), weights, batch)
    assert losses.per_example(losses.margin(linear), weights, got, "image")[0].min() >= 0.2


@pytest.mark.slow  # test_rows counts them for rows without a network
def test_the_host_compiles_a_logarithmic_number_of_sizes():
    sizes, batch = [], make_batch(PARAMS, n=120)

    def counting(params, inputs):
        sizes.append(inputs.shape[0])
        return logits_fn(params, inputs)

    attacks.trust_region(0.05, steps=200)(losses.margin(counting), PARAMS, batch)
    assert set(sizes) <= {120, 96, 64, 48, 32}
    assert min(sizes) == 32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.pgd(0.1, norm="l3"), r"`norm` must be one of \['linf', 'l2', 'l1'\], got 'l3'"),
        (lambda: attacks.trust_region(0.1, norm="l1"), r"`norm` must be one of \['l2', 'linf'\], got 'l1'"),
        (lambda: attacks.deepfool(norm="l1"), r"`norm` must be one of \['l2', 'linf'\], got 'l1'"),
        (lambda: attacks.pgd(0.1, steps=0), "`steps` must be a whole number of at least 1, got 0"),
        (lambda: attacks.pgd(0.1, restarts=0), "`restarts` must be a whole number of at least 1, got 0"),
        (lambda: attacks.pgd(0.1, restarts=2, random_start=False), "`restarts` from one and the same start"),
        (lambda: attacks.pgd(0.1, step_size=0.0), r"`step_size` must be positive and finite, got 0\.0"),
        (lambda: attacks.mi_fgsm(0.1, momentum=-1.0), r"`momentum` must be at least 0 and finite, got -1\.0"),
        (
            lambda: attacks.bim(0.1, bounds=(1.0, 0.0)),
            r"`bounds` must be \(lowest, highest\), got \(1\.0, 0\.0\)",
        ),
        (lambda: attacks.fhsm(0.1, max_iters=0), "`max_iters` must be a whole number of at least 1, got 0"),
        (lambda: attacks.l2hess(0.1, damping=0.0), r"`damping` must be positive and finite, got 0\.0"),
        (lambda: attacks.trust_region(0.0), r"`radius` must be positive and finite, got 0\.0"),
        (
            lambda: attacks.trust_region(0.1, ratio="new"),
            r"`ratio` must be one of \['corrected', 'published'\]",
        ),
        (lambda: attacks.trust_region(0.1, rival="worst"), r"`rival` must be one of \['best', 'hardest'\]"),
        (lambda: attacks.trust_region(0.1, radius_range=(0.2, 0.3)), r"`radius_range` must be \(smallest"),
        (lambda: attacks.trust_region(0.1, overshoot=-1.0), "`overshoot` must be at least 0 and finite"),
        (lambda: attacks.deepfool(num_rivals=0), "`num_rivals` must be a whole number of at least 1, got 0"),
        (
            lambda: attacks.carlini_wagner(bounds=None),
            r"`bounds` must be \(lowest, highest\), finite, for carlini_wagner, got None",
        ),
        (  # the tanh of what lies between them would be NaN, and nothing found
            lambda: attacks.carlini_wagner(bounds=(-np.inf, np.inf)),
            r"`bounds` must be .*finite, for carlini_wagner, got \(-inf, inf\)",
        ),
        (lambda: attacks.carlini_wagner(confidence=-1.0), "`confidence` must be at least 0 and finite"),
    ],
)
def test_refuses_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("attack", [attacks.trust_region(0.1, num_rivals=4), attacks.deepfool(num_rivals=4)])
def test_refuses_more_rivals_than_classes(attack):
    with pytest.raises(
        ValueError, match=r"`num_rivals` asks for 4 other classes, but the network has 4 classes"
    ):
        attack(LOSS, PARAMS, make_batch(PARAMS))


def test_refuses_a_targeted_deepfool():
    with pytest.raises(ValueError, match="deepfool is untargeted, got a loss with targeted=True"):
        attacks.deepfool()(losses.margin(logits_fn, targeted=True), PARAMS, make_batch(PARAMS))


def test_refuses_random_starts_without_a_key():
    with pytest.raises(ValueError, match="A random start needs a random key"):
        attacks.pgd(0.1)(LOSS, PARAMS, make_batch(PARAMS))


@pytest.mark.parametrize(
    "attack", [attacks.bim(8 / 255), attacks.trust_region(0.01, norm="linf")], ids=["bim", "trust_region"]
)
def test_small_steps_of_bfloat16_are_warned_of(attack):
    # 8 / 255 in ten steps is below half a unit in the last place of what lies near 1: nothing would move.
    batch = {"image": jnp.full((2, 3), 0.9, jnp.bfloat16), "label": jnp.zeros(2, jnp.int32)}
    loss_fn = losses.cross_entropy(lambda w, x: x.astype(jnp.float32) @ w)
    with pytest.warns(UserWarning, match="are bfloat16: steps of less than half of its last digit vanish"):
        attack(loss_fn, jnp.eye(3), batch, KEY)


@pytest.mark.parametrize(
    "attack", [attacks.deepfool(), attacks.trust_region(0.05), attacks.ensemble(0.3, steps=3, queries=5)]
)
def test_who_walks_from_class_to_class_refuses_soft_labels(attack):
    batch = {"image": jnp.full((2, 3), 0.5), "probabilities": jnp.full((2, 3), 1 / 3)}
    with pytest.raises(
        ValueError, match=r"needs classes for labels, got a loss of soft labels: pass cross_entropy"
    ):
        attack(losses.kl(lambda w, x: x @ w), jnp.eye(3), batch, KEY)


def test_checkpoints_are_those_of_algorithm_1():
    for steps in range(2, 201):
        shares = [Fraction(0), Fraction(22, 100)]
        while shares[-1] < 1:
            shares.append(shares[-1] + max(shares[-1] - shares[-2] - Fraction(3, 100), Fraction(6, 100)))
        want = sorted({math.ceil(share * steps) for share in shares[1:] if share <= 1})
        intervals = checkpoints(steps)
        assert np.flatnonzero(intervals).tolist() == want
        np.testing.assert_array_equal(intervals[want], np.diff([0, *want]))
