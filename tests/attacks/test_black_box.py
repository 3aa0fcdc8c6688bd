"""Square and ensemble: what they are for, and the random search against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import attacks
from hessabs.attacks import losses, patterns
from hessabs.attacks.square import side_lengths
from tests.attacks.cases import KEY, LOSS, PARAMS, fallen, logits_fn, make_batch, size_of

pytestmark = pytest.mark.sampled


def masked_logits(params, inputs):
    return jax.lax.stop_gradient(logits_fn(params, inputs))


def test_square_needs_no_gradient():
    batch, masked = make_batch(PARAMS, n=30), losses.margin(masked_logits)
    stays = attacks.fgsm(0.2)(masked, PARAMS, batch)["image"]
    np.testing.assert_array_equal(stays, batch["image"])
    got = attacks.square(0.2, queries=60)(masked, PARAMS, batch, KEY)
    strong = attacks.pgd(0.2, random_start=False)(LOSS, PARAMS, batch)
    clean, black, white = (fallen(PARAMS, b).sum() for b in (batch, got, strong))
    assert clean < black <= white
    assert black - clean >= 0.8 * (white - clean)


@pytest.mark.slow
def test_ensemble_fells_what_its_members_fell_and_more_than_any_with_the_gradient_hidden():
    batch = make_batch(PARAMS, n=30)
    together = fallen(PARAMS, attacks.ensemble(0.1, steps=10, queries=30)(LOSS, PARAMS, batch, KEY))
    for member in (attacks.apgd(0.1, steps=10), attacks.square(0.1, queries=30)):
        # Another seed may fell one that this one does not.
        assert fallen(PARAMS, member(LOSS, PARAMS, batch, KEY)).sum() <= together.sum() + 1
    hidden = losses.cross_entropy(masked_logits)
    got = attacks.ensemble(0.2, steps=3, num_targets=0, queries=60)(hidden, PARAMS, batch, KEY)
    assert fallen(PARAMS, got).sum() > fallen(PARAMS, batch).sum()


@pytest.mark.slow  # its doctest is one of two classes, too
def test_ensemble_without_enough_classes_for_the_ratio():
    batch = {"image": jnp.array([[0.6, 0.4], [0.9, 0.1]]), "label": jnp.array([0, 0])}
    loss_fn = losses.cross_entropy(lambda w, x: x @ w)
    got = attacks.ensemble(0.2, steps=5, queries=5)(loss_fn, jnp.eye(2), batch, KEY)
    np.testing.assert_array_equal(fallen(jnp.eye(2), got, loss_fn), [True, False])


def test_squares_are_squares_inside_the_image():
    keys = jax.random.split(KEY, 10)
    flip = jax.jit(jax.vmap(lambda key, side: patterns.flip(key, jnp.zeros((8, 11, 3)), side, 0.25), (0, None)))
    flipped = [(side, got) for side in (1, 2, 5, 8) for got in np.asarray(flip(keys, np.int32(side)))]
    for side, got in flipped:
        assert np.unique(got[got != 0]).tolist() in ([-0.25], [0.25], [-0.25, 0.25])
        for channel in np.moveaxis(got, -1, 0):
            rows, columns = np.nonzero(channel)
            assert len(rows) == side**2
            assert np.ptp(rows) == np.ptp(columns) == side - 1
            assert len(np.unique(channel[rows, columns])) == 1


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_that_moves_keeps_the_norm_of_the_ball(norm):
    move = jax.jit(lambda key, delta, side: patterns.move_mass(key, delta, side, 0.5, norm))
    first = np.asarray(jax.jit(lambda key: patterns.tiles(key, (9, 7, 2), 0.5, norm))(KEY))
    np.testing.assert_allclose(size_of(first[None], norm), 0.5, rtol=1e-5)
    for side in (1, 6):
        delta, ever = first, 0
        for seed in range(20):
            moved = np.asarray(move(jax.random.key(seed), delta, np.int32(side)))
            np.testing.assert_allclose(size_of(moved[None], norm), 0.5, rtol=1e-5)
            changed = np.any(np.abs(moved - delta) > 1e-7, axis=-1)
            assert changed.sum() <= 2 * side**2
            ever += changed.sum()
            delta = moved
        assert ever > 10


def test_sides_never_grow_and_start_with_the_share():
    sides = side_lengths(500, 0.8, (28, 28, 1))
    assert sides[0] == 25
    assert sides[-1] == 1
    assert np.all(np.diff(sides) <= 0)


def gain(w, shape, queries=100, norm="linf", **options):
    """The part of the highest loss that a linear loss of some images, in some layout, was brought to."""
    image = jnp.full((4, *shape), 0.5)
    attack = attacks.square(0.1, norm=norm, queries=queries, **options)
    got = attack(
        lambda w, b: jnp.mean(jnp.sum(b["image"] * w, (1, 2, 3)[: len(shape)])), w, {"image": image}, KEY
    )
    return float(
        jnp.mean(jnp.sum((got["image"] - image) * w, (1, 2, 3)[: len(shape)])) / (0.1 * jnp.sum(jnp.abs(w)))
    )


@pytest.mark.parametrize(
    ("layout", "shape", "image"),
    [("channels_last", (4, 5, 3), (4, 5, 3)), ("channels_first", (3, 4, 5), (4, 5, 3)),
     ("vector", (4, 5), (1, 20, 1)), ("channels_last", (4, 5), (4, 5, 1)), ("channels_first", (7,), (1, 7, 1))],
)  # fmt: skip
def test_an_input_of_any_layout_is_an_image_and_back(layout, shape, image):
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    got = patterns.as_image(x, layout)
    assert got.shape == image
    np.testing.assert_array_equal(patterns.as_input(got, shape, layout), x)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_layout_changes_nothing(norm):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(9, 8, 3)), jnp.float32)
    last = gain(w, w.shape, norm=norm)
    first = gain(jnp.moveaxis(w, -1, 0), (3, 9, 8), norm=norm, layout="channels_first")
    assert last > 0
    np.testing.assert_allclose(first, last, rtol=0.1)  # one sum that rounds otherwise may keep another square


@pytest.mark.slow
def test_blocks_of_a_vector_are_stronger_than_entries_one_by_one():
    w = jnp.asarray(np.random.default_rng(0).normal(size=784), jnp.float32)
    assert gain(w, (784,)) > 0.15  # entries one by one: 0.07


@pytest.mark.slow
def test_blocks_of_a_vector_are_as_strong_as_squares_of_an_image():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=784), jnp.float32)
    image, vector = gain(w.reshape(28, 28), (28, 28)), gain(w, (784,))
    assert vector > 0.9 * image
    np.testing.assert_allclose(gain(w.reshape(28, 28), (28, 28), layout="vector"), vector, rtol=1e-4)
    smooth = jnp.asarray(np.convolve(rng.normal(size=814), np.ones(31), "valid"), jnp.float32)
    assert gain(smooth[:, None], (784, 1)) > 0.35  # a signal: blocks of neighbours


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.square(0.1, layout="chw"), r"`layout` must be one of .*'vector'\], got 'chw'"),
        (lambda: attacks.square(0.1, queries=0), "`queries` must be a whole number of at least 1, got 0"),
        (lambda: attacks.square(0.1, share=1.5), r"`share` must lie in \(0, 1\], got 1.5"),
        (lambda: attacks.ensemble(0.1, num_targets=-1), "`num_targets` must be a whole number of at least 0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_at_the_call():
    batch = make_batch(PARAMS)
    with pytest.raises(ValueError, match="The square attack needs a random key"):
        attacks.square(0.1)(LOSS, PARAMS, batch)
    with pytest.raises(ValueError, match="The ensemble needs a random key"):
        attacks.ensemble(0.1)(LOSS, PARAMS, batch)
    with pytest.raises(ValueError, match="ensemble is untargeted, got a loss with targeted=True"):
        attacks.ensemble(0.1)(
            losses.margin(logits_fn, targeted=True), PARAMS, {**batch, "target": batch["label"]}, KEY
        )
    deep = {"image": jnp.full((2, 2, 2, 2, 2), 0.5), "label": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"takes inputs of shape .* got \(2, 2, 2, 2\)"):
        attacks.square(0.1)(lambda w, b: jnp.mean(b["image"]), None, deep, KEY)


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd", "mi_fgsm", "adam_pgd", "apgd", "square", "ensemble"])
def test_refuses_a_norm_that_there_is_not(name):
    with pytest.raises(ValueError, match=r"^`norm` must be one of \['linf', 'l2'.*\], got 'l3'\.$"):
        getattr(attacks, name)(0.1, norm="l3")
