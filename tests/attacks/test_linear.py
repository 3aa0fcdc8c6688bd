"""Every attack that knows its norm reaches the optimum of a linear loss, with and without bounds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import hessabs
from hessabs import attacks, trees
from hessabs.attacks import losses, norms
from tests.attacks import optima
from tests.attacks.cases import KEY, mostly_slow

pytestmark = pytest.mark.sampled
EPSILON = {"linf": 0.3, "l2": 1.5, "l1": 4.0}  # large enough for half of the bounds to hold something back
NORMS = ("linf", "l2", "l1")
UNIT = (0.0, 1.0)
BOUNDS = [UNIT, None]
ITERATED = ("bim", "mi_fgsm", "pgd", "adam_pgd", "apgd")


def problem(examples=3, entries=30):
    rng = np.random.default_rng(0)
    w = rng.normal(size=entries) ** 3  # some far larger than others
    image = rng.uniform(0, 1, (examples, entries))
    image[0, :6] = [0, 1, 0, 1, 0, 1]
    return w, {"image": jnp.asarray(image, jnp.float32), "label": jnp.zeros(examples, jnp.int32)}


def linear_loss(w, batch):
    return jnp.mean(batch["image"] @ w)


def ball(epsilon, norm):
    return norms.Ball(epsilon, trees.Static((norm, UNIT)))


def shortfall(w, batch, attacked, norm, bounds):
    x, got = (np.asarray(b["image"], np.float64) for b in (batch, attacked))
    best = [w @ (optima.farthest(w, row, EPSILON[norm], norm, bounds) - row) for row in x]
    return np.max(1 - (got - x) @ w / best)


@pytest.mark.parametrize(
    ("name", "norm", "bounds"),
    mostly_slow(
        list(itertools.product(ITERATED, NORMS, BOUNDS)),
        [("bim", "l2", None), ("pgd", "l1", UNIT), ("mi_fgsm", "linf", UNIT), ("adam_pgd", "l2", UNIT),
         ("apgd", "l1", None)],
    ),
)  # fmt: skip
def test_iterated_attacks(name, norm, bounds):
    w, batch = problem()
    start = {"random_start": False} if name == "apgd" else {}
    attack = getattr(attacks, name)(EPSILON[norm], norm=norm, bounds=bounds, **start)
    got = attack(linear_loss, jnp.asarray(w, jnp.float32), batch, KEY)
    assert shortfall(w, batch, got, norm, bounds) < 0.002


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_of_one_step(norm, bounds):
    w, batch = problem()
    got = attacks.fgsm(EPSILON[norm], norm=norm, bounds=bounds)(linear_loss, jnp.asarray(w, jnp.float32), batch)
    assert shortfall(w, batch, got, norm, bounds) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "bounds"), [("linf", None), ("l2", UNIT), ("l1", UNIT)])
def test_ensemble(norm, bounds):
    # A label that wins everywhere: no member fells an example, and the first one's point comes back.
    w, batch = problem()

    def logits_fn(w, x):
        return jnp.stack([jnp.ones(len(x)), 1e-3 * (x @ w)], axis=1)

    attack = attacks.ensemble(EPSILON[norm], norm=norm, bounds=bounds, steps=20, queries=2)
    got = attack(losses.margin(logits_fn), jnp.asarray(w, jnp.float32), batch, KEY)
    assert shortfall(w, batch, got, norm, bounds) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ITERATED)
def test_one_large_entry_among_many_small_ones(name):
    w = np.array([3, 1, 0.5, 0.2] + [0.1] * 36)
    batch = {"image": jnp.full((1, 40), 0.5), "label": jnp.zeros(1)}
    attack = getattr(attacks, name)(0.4, norm="l1")
    got = attack(linear_loss, jnp.asarray(w, jnp.float32), batch, KEY)["image"]
    np.testing.assert_allclose((np.asarray(got[0], np.float64) - 0.5) @ w, 1.2, rtol=1e-3)


def nearest(point, x, epsilon, norm):
    """The projection onto ball and unit box by sequential quadratic programming."""
    n = len(x)

    def squared(parts):
        return np.sum((x + parts[:n] - parts[n:] - point) ** 2)

    def slack(parts):
        return epsilon - parts.sum() if norm == "l1" else epsilon**2 - np.sum((parts[:n] - parts[n:]) ** 2)

    limits = [(0, room) for room in (*(1 - x), *x)]
    found = minimize(
        squared, np.zeros(2 * n), bounds=limits, constraints={"type": "ineq", "fun": slack}, method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return x + found.x[:n] - found.x[n:]


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_onto_ball_and_bounds_together(norm):
    rng = np.random.default_rng(0)
    restrict = jax.jit(lambda point, x, epsilon: norms.restrict(point, x, ball(epsilon, norm)))
    if norm == "l1":  # a point worked out by hand
        known = restrict(jnp.array([1.95, 1.0, 0.5]), jnp.array([0.95, 0.5, 0.5]), 1.0)
        np.testing.assert_allclose(known, [1, 1, 0.5], rtol=1e-6)
    for _ in range(6):
        x, epsilon = rng.uniform(0, 1, 6), rng.uniform(0.1, 1.5)
        x[:2] = 0, 1
        point = x + rng.normal(size=6) * rng.uniform(0.1, 1)
        got = restrict(np.float32(point), np.float32(x), epsilon)
        np.testing.assert_allclose(got, nearest(point, x, epsilon, norm), atol=2e-4)
        assert np.linalg.norm(np.float64(got) - np.float32(x), 1 if norm == "l1" else 2) <= epsilon * (1 + 1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_the_scale_of_the_gradient_does_not_matter_and_none_is_no_step(norm):
    w, batch = problem()
    x = batch["image"][0]

    @jax.jit
    def moved(w, away):
        point = norms.restrict(x + away, x, ball(1.0, norm))
        return point, norms.farthest(w, x, ball(1.0, norm)), norms.ascend(point, w, 0.5, x, ball(1.0, norm))

    for scale in (1e-30, 1e30):
        for got, want in zip(moved(np.float32(scale * w), 0.0), moved(np.float32(w), 0.0), strict=True):
            np.testing.assert_allclose(got, want, atol=2e-6)
    point, highest, ahead = moved(np.zeros_like(x), 0.1)
    np.testing.assert_array_equal(highest, x)
    np.testing.assert_allclose(ahead, point, atol=1e-7)
    assert not np.allclose(point, x)


OUTSIDE = {
    "fgsm": lambda: attacks.fgsm(0.1),
    "l2grad": lambda: attacks.l2grad(0.1),
    "bim": lambda: attacks.bim(0.1, steps=4),
    "pgd": lambda: attacks.pgd(0.1, norm="l1", steps=4, random_start=False),
    "apgd": lambda: attacks.apgd(0.1, norm="l2", steps=4, random_start=False),
    "l2hess": lambda: attacks.l2hess(0.1),
    "square": lambda: attacks.square(0.1, queries=5),
    "deepfool": lambda: attacks.deepfool(steps=4),
    "trust_region": lambda: attacks.trust_region(0.05, steps=4),
    "carlini_wagner": lambda: attacks.carlini_wagner(steps=10, binary_search_steps=3, initial_weight=1.0),
}


@pytest.mark.parametrize("name", mostly_slow(OUTSIDE, ["fgsm", "apgd", "carlini_wagner"]))
def test_what_an_attack_does_not_move_stays_outside_the_bounds(name):
    # Under jit nobody sees that the images are normalised: they must not be clipped without a word.
    w = jnp.zeros((4, 2)).at[0, 1].set(1.0).at[1, 1].set(1.0)  # entries 2 and 3 are of no interest
    image = jnp.array([[0.3, -2.0, 3.0, -3.0]])
    batch = {"image": image, "label": jnp.array([0])}
    loss_fn = losses.margin(lambda w, x: x @ w + jnp.array([0.5, 0.0]))
    got = jax.jit(lambda b: OUTSIDE[name]()(loss_fn, w, b, KEY))(batch)["image"]
    assert np.all(np.isfinite(got))
    if name != "square":  # it tries every entry
        np.testing.assert_array_equal(got[:, 2:], image[:, 2:])
    assert np.all((got >= np.minimum(image, 0)) & (got <= np.maximum(image, 1)))


def test_the_mixed_gradient_of_normalised_images():
    # A quarter of the batch is attacked where nothing can move: the gradient is that of the batch itself.
    def loss(w, batch):
        return jnp.mean((batch["image"] @ w) ** 2)

    w, batch = jnp.array([1.0, 0.0]), {"image": jnp.array([[2.0, -5.0], [3.0, 7.0]])}
    clean = jax.grad(loss)(w, batch)
    tx = hessabs.adversarial_gradient(attacks.fgsm(0.25), max_fraction=0.5)
    got, _ = jax.jit(lambda g: tx.update(g, tx.init(w), w, loss_fn=loss, batch=batch))(clean)
    np.testing.assert_allclose(got, clean, rtol=1e-6)
