"""Mixing: exactly the first m examples are replaced, and a changing fraction compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.attacks import fgsm, num_replaced, replace_fraction
from hessabs.attacks.mixing import attacked_head, beyond_maximum

pytestmark = pytest.mark.sampled

FRACTIONS = (0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)


def mark(loss_fn, params, batch, key=None):
    """An attack that marks what it replaced."""
    return {**batch, "image": batch["image"] + 1000}


def loss(params, batch):
    return jnp.mean(batch["image"] * params)


def make_batch(n):
    return {
        "image": jnp.arange(2.0 * n).reshape(n, 2),
        "label": jnp.arange(n, dtype=jnp.int32),
        "weight": jnp.ones(n, jnp.float32),
    }


def marked(batch, original):
    return np.asarray(batch["image"] - original["image"])[:, 0] == 1000


@pytest.mark.parametrize(("fraction", "want"), [*zip(FRACTIONS, (25, 12, 6, 3, 1, 0), strict=True)])
def test_num_replaced_of_128(fraction, want):
    for value in (fraction, np.float32(fraction), jnp.float32(fraction)):
        got = num_replaced(value, 128)
        assert got.dtype == jnp.int32
        assert got.shape == ()
        assert int(got) == want


@pytest.mark.parametrize("n", [1, 5, 100, 128, 16_000])
def test_num_replaced_of_whole_counts(n):
    # m / n is stored just below its value for many m: the floor must not lose an example.
    for m in range(0, n + 1, max(1, n // 20)):
        assert int(num_replaced(m / n, n)) == m
    assert int(num_replaced(0.999 / n, n)) == 0


@pytest.mark.parametrize(
    ("fraction", "n"), [(0.0, 5), (0.00625, 128), (0.2, 5), (0.2, 128), (0.999, 128), (1.0, 5)]
)
def test_replaces_exactly_the_first(fraction, n):
    batch = make_batch(n)
    mixed = replace_fraction(mark, loss, 1.0, batch, fraction)
    m = int(np.floor(fraction * n + 1e-9))
    np.testing.assert_array_equal(marked(mixed, batch), np.arange(n) < m)
    np.testing.assert_array_equal(mixed["image"][m:], batch["image"][m:])
    for name in ("label", "weight"):
        np.testing.assert_array_equal(mixed[name], batch[name])
        assert mixed[name].dtype == batch[name].dtype


@pytest.mark.parametrize(
    ("max_fraction", "fraction", "part_size"),
    [(0.0, 0.0, 8), (0.0, 0.25, None), (0.01, 0.0, None), (0.01, 0.5, 8), (0.25, 0.25, 8), (0.25, 0.5, None),
     (0.25, float("nan"), None), (1.0, 0.5, 8), (1.0, 1.5, None), (1.0, float("nan"), 8)],
)  # fmt: skip
def test_a_fraction_beyond_the_largest_is_refused_or_shows(max_fraction, fraction, part_size):
    batch, n = make_batch(16), part_size or 16

    def mix(fraction):
        options = {"max_fraction": max_fraction, "part_size": part_size}
        return replace_fraction(mark, loss, 1.0, batch, fraction, **options)

    traced = jax.jit(mix)(fraction)
    if fraction <= max_fraction or np.floor(n * fraction) <= np.floor(n * max_fraction):
        for mixed in (mix(fraction), mix(jnp.float32(fraction)), traced):
            want = np.arange(16) % n < np.floor(n * fraction)
            np.testing.assert_array_equal(marked(mixed, batch), want)
    else:
        for value in (fraction, jnp.float32(fraction)):
            with pytest.raises(ValueError, match=f"at most max_fraction={max_fraction}, got {fraction}"):
                mix(value)
        assert np.isnan(traced["image"]).all()
        np.testing.assert_array_equal(traced["label"], batch["label"])


@pytest.mark.parametrize("n", [7, 1000, 123_457])
def test_the_largest_fraction_itself_is_never_beyond(n):
    fractions = [0.1, 0.2, 1 / 3, 0.7, 0.123_456_7]
    for fraction in fractions:
        for value in (fraction, jnp.float32(fraction)):
            assert beyond_maximum(value, fraction, n) is False
    traced = jax.jit(
        lambda each: [beyond_maximum(f, known, n) for f, known in zip(each, fractions, strict=True)]
    )
    assert not any(traced(fractions))


def test_attacks_the_head_alone():
    seen = []

    def spy(loss_fn, params, batch, key=None):
        seen.append((jax.tree.map(jnp.shape, batch), loss_fn, params, key))
        return mark(loss_fn, params, batch)

    key = jax.random.key(3)
    replace_fraction(spy, loss, 7.0, make_batch(128), 0.1, key, max_fraction=0.2)
    assert seen == [({"image": (25, 2), "label": (25,), "weight": (25,)}, loss, 7.0, key)]


def test_no_attack_where_no_example_can_be_replaced():
    def fail(*args):
        raise AssertionError("attacked")

    batch = make_batch(4)
    mixed = replace_fraction(fail, loss, 1.0, batch, 0.2, max_fraction=0.2)
    jax.tree.map(np.testing.assert_array_equal, mixed, batch)


def test_all_fractions_compile_once():
    traces = []

    @jax.jit
    def mix(batch, fraction):
        traces.append(1)
        return replace_fraction(mark, loss, 1.0, batch, fraction, max_fraction=0.2)

    batch = make_batch(128)
    for fraction in (*FRACTIONS, 0.0):
        mixed = mix(batch, fraction)
        m = int(fraction * 128)
        np.testing.assert_array_equal(marked(mixed, batch), np.arange(128) < m)
    assert len(traces) == 1
    assert mix._cache_size() == 1


def test_with_fgsm_on_a_linear_loss():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=3), jnp.float32)
    batch = {"image": jnp.asarray(rng.uniform(0.3, 0.7, (10, 3)), jnp.float32), "label": jnp.arange(10)}
    mixed = replace_fraction(fgsm(0.1), lambda w, b: jnp.mean(b["image"] @ w), w, batch, 0.3)
    want = np.asarray(batch["image"]).copy()
    want[:3] += 0.1 * np.sign(w)
    np.testing.assert_allclose(mixed["image"], want, atol=2e-7)  # the rounding of one addition


@pytest.mark.filterwarnings("ignore:The inputs at key 'image' are float16")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_are_kept(dtype):
    batch = {"image": jnp.full((8, 2), 0.5, dtype), "label": jnp.zeros(8, jnp.int8)}
    mixed = replace_fraction(fgsm(0.25), loss, jnp.ones(2, dtype), batch, 0.5)
    assert jax.tree.map(jnp.result_type, mixed) == jax.tree.map(jnp.result_type, batch)
    np.testing.assert_array_equal(mixed["image"][:, 0].astype(jnp.float32), [0.75] * 4 + [0.5] * 4)


@pytest.mark.slow
def test_vmap_over_fractions():
    batch = make_batch(8)
    fractions = jnp.array([0.0, 0.25, 1.0])
    mixed = jax.vmap(lambda f: replace_fraction(mark, loss, 1.0, batch, f))(fractions)
    for i, m in enumerate((0, 2, 8)):
        np.testing.assert_array_equal(marked({"image": mixed["image"][i]}, batch), np.arange(8) < m)


def test_attacked_head_returns_both_sides():
    batch = make_batch(10)
    adversarial, clean = attacked_head(mark, loss, 1.0, batch, jnp.int32(2), 0.4)
    np.testing.assert_array_equal(marked(adversarial, clean), [True, True, False, False])
    np.testing.assert_array_equal(clean["image"], batch["image"][:4])


@pytest.mark.parametrize("max_fraction", [-0.1, 1.1, float("nan")])
def test_refuses_max_fraction(max_fraction):
    with pytest.raises(ValueError, match=rf"`max_fraction` must lie in \[0, 1\], got {max_fraction}"):
        replace_fraction(mark, loss, 1.0, make_batch(4), 0.5, max_fraction=max_fraction)


@pytest.mark.parametrize(("part_size", "fraction"), [(1, 0.5), (4, 0.3), (6, 0.5), (6, 0.0), (12, 0.3)])
def test_the_first_of_each_part(part_size, fraction):
    rng = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(rng.normal(size=(12, 3)), jnp.float32),
        "label": jnp.arange(12, dtype=jnp.int32),
    }
    calls = []

    def attack(loss_fn, params, batch, key=None):
        calls.append(1)
        return {**batch, "image": batch["image"] * params + 1}

    def mix(batch, **options):
        return replace_fraction(attack, loss, 2.0, batch, fraction, max_fraction=0.5, **options)

    parts = [mix(jax.tree.map(lambda x, i=i: x[i : i + part_size], batch)) for i in range(0, 12, part_size)]
    calls.clear()
    got = mix(batch, part_size=part_size)
    assert len(calls) == (part_size > 1)
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(lambda *x: jnp.concatenate(x), *parts))


def test_a_part_that_does_not_divide():
    with pytest.raises(ValueError, match="divide the batch of 12 examples, got 5"):
        replace_fraction(mark, loss, 1.0, make_batch(12), 0.5, part_size=5)


def test_num_replaced_is_the_floor_of_the_exact_product():
    for percent in range(1, 100):
        for number in (100, 1000, 5000, 13_000, 26_000, 60_000):
            assert int(num_replaced(percent / 100, number)) == percent * number // 100
