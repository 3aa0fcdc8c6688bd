"""Iterations over rows: whatever is thrown out and whatever runs side by side, each row ends as if alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from hessabs import attacks
from hessabs.attacks import rows
from hessabs.cpu import footprint, side_by_side
from tests.attacks.cases import CASES, KEY, LOSS, PARAMS, make_batch, mostly_slow

pytestmark = pytest.mark.sampled


class Rows(NamedTuple):
    number: Any
    steps: Any  # taken so far
    done: Any


def step(limits, state, i):
    # A row ends when it has taken as many steps as its number says.
    steps = state.steps + 1
    return Rows(state.number, steps + 0 * limits, state.done | (steps >= state.number))


def start(numbers):
    numbers = jnp.asarray(numbers, jnp.int32)
    return Rows(numbers, jnp.zeros_like(numbers), numbers == 0)


@pytest.fixture
def two_parts(monkeypatch):
    monkeypatch.setattr(side_by_side, "num_threads", lambda: 2)


@pytest.mark.parametrize(
    ("num_rows", "threads", "cache"),
    [(1, 3, 0), (33, 1, 2**20), (33, 2, 40 * 4), (100, 2, 2**20), (100, 3, 0), (257, 3, 2**20), (257, 2, 160)],
)
def test_every_row_takes_its_own_steps(monkeypatch, num_rows, threads, cache):
    monkeypatch.setattr(side_by_side, "num_threads", lambda: threads)
    monkeypatch.setattr(rows, "_PART", 1)
    monkeypatch.setattr(footprint, "CACHED", cache)
    numbers = np.random.default_rng(0).integers(0, 9, num_rows)
    got = rows.iterate(Partial(step, 0), start(numbers), 6, "host")
    np.testing.assert_array_equal(got.number, numbers)
    np.testing.assert_array_equal(got.steps, np.minimum(numbers, 6))
    np.testing.assert_array_equal(got.done, numbers <= 6)
    compiled = rows.iterate(Partial(step, 0), start(numbers), 6, "device")
    for one, other in zip(got, compiled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_of_a_loss_that_closes_over_tracers():
    numbers = np.repeat([0, 4], 100)  # half is done before the first step, and thrown out on the host

    @jax.jit
    def run(limits):
        return rows.iterate(lambda state, i: step(limits, state, i), start(numbers), 6, "host").steps

    with pytest.raises(ValueError, match="under a trace"):
        run(jnp.int32(0))

    rows_here = start(numbers)

    @jax.jit
    def closing(limits):
        return rows.iterate(Partial(lambda state, i: step(limits, state, i)), rows_here, 6).steps

    np.testing.assert_array_equal(closing(jnp.int32(0)), numbers)


def test_each_number_of_rows_is_compiled_once(two_parts):
    traced = []

    def counting(state, i):
        traced.append(len(state.done))
        return step(0, state, i)

    rows.iterate(Partial(counting), start(np.arange(400) % 40), 40, "host")
    assert len(traced) == len(set(traced)) > 2


def test_threads_see_the_settings_of_the_caller(two_parts):
    def widened(state, i):
        assert jax.config.jax_numpy_rank_promotion == "raise"
        return step(0, state, i)

    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        wide = Rows(jnp.full(300, 3.0, jnp.float64), jnp.zeros(300, jnp.float64), jnp.zeros(300, bool))
        got = rows.iterate(Partial(widened), wide, 5, "host")
        assert got.steps.dtype == jnp.float64
    np.testing.assert_array_equal(got.steps, 3)


def test_rows_stay_whole_without_jit_and_on_accelerators(monkeypatch, two_parts):
    many = start(np.full(10_000, 3))
    assert len(rows._cut(Partial(step, 0), many)) == 2
    with jax.disable_jit():
        assert rows._cut(Partial(step, 0), many) == [slice(0, 10_000)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert rows._cut(Partial(step, 0), many) == [slice(0, 10_000)]


def test_rows_of_large_arrays_go_in_more_parts(monkeypatch, two_parts):
    monkeypatch.setattr(footprint, "CACHED", 2**16)
    sizes = set()

    def large(state, i):
        sizes.add(len(state.done))
        image = jnp.ones((len(state.done), 2**12), jnp.float32) * state.number[:, None]  # a quarter of it
        return step(0 * jnp.sum(image[:, 0]).astype(jnp.int32), state, i)

    got = rows.iterate(Partial(large), start(np.full(300, 3)), 5, "host")
    np.testing.assert_array_equal(got.steps, 3)
    assert sizes == {300, 15}  # 300: to see how large the arrays would be


def test_an_error_in_a_part_is_raised(two_parts):
    def failing(state, i):
        if len(state.done) == 96:  # what is left of the second half: the first one, of 150, is not cut short
            raise FloatingPointError("in a part")
        return step(0, state, i)

    numbers = np.where(np.arange(300) < 230, 9, 2)
    with pytest.raises(FloatingPointError, match="in a part"):
        rows.iterate(Partial(failing), start(numbers), 5, "host")


class WithKeys(NamedTuple):
    number: Any
    steps: Any
    done: Any
    shared: Any
    scale: Any
    own: Any


def drawing(state, i):
    # What a row adds depends on its own key, the shared one and the scalar.
    drawn = jax.vmap(lambda key: jax.random.uniform(key) + jax.random.uniform(state.shared))(state.own)
    return state._replace(steps=state.steps + state.scale * drawn, done=i + 1 >= state.number)


@pytest.mark.slow
def test_scalars_and_keys_belong_to_all_rows_and_a_key_to_its_own(two_parts):
    n = 200
    numbers, own, shared = (
        np.random.default_rng(0).integers(1, 5, n),
        jax.random.split(KEY, n),
        jax.random.key(1),
    )
    begun = WithKeys(jnp.asarray(numbers), jnp.zeros(n), jnp.zeros(n, bool), shared, 2.0, own)
    got = rows.iterate(Partial(drawing), begun, 5, "host")
    drawn = jax.jit(jax.vmap(jax.random.uniform))(own) + jax.random.uniform(shared)
    np.testing.assert_allclose(got.steps, 2.0 * numbers * drawn, rtol=1e-5)
    assert got.shared == shared
    assert got.scale == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd-linf", "square-linf", "carlini_wagner"])
def test_scalars_and_keys_of_a_batch_stay_as_they_are_at_any_number_of_rows(name, two_parts):
    attack = CASES[name].make(0.1)
    for n in (3, 200):
        batch = make_batch(PARAMS, n=n)
        more = {**batch, "a": jax.random.key(1), "b": 2.0, "own": jax.random.split(KEY, n)}
        got, want = attack(LOSS, PARAMS, more, KEY), attack(LOSS, PARAMS, batch, KEY)
        np.testing.assert_allclose(got["image"], want["image"], atol=CASES[name].tolerance)
        assert all(got[leaf] is more[leaf] for leaf in ("a", "b", "own"))


@pytest.mark.slow
@pytest.mark.parametrize("n", mostly_slow([20, 200], [20]))
def test_a_loss_reads_the_scalars_and_keys_of_its_batch(n):
    def loss(w, batch):
        noise = jax.random.uniform(batch["a"], (len(batch["image"]), 4))  # the same for each example alone
        return jnp.mean(jnp.sum(batch["temperature"] * noise * w * batch["image"], axis=1))

    w, image = jnp.array([1.0, -2.0, 3.0, -4.0]), jnp.full((n, 4), 0.5)
    batch = {"a": jax.random.key(0), "image": image, "temperature": -1.0}
    got = attacks.pgd(0.1, restarts=2, steps=10)(loss, w, batch, KEY)["image"]
    np.testing.assert_allclose(got, image - 0.1 * jnp.sign(w), atol=1e-6)
    mixed = attacks.replace_fraction(attacks.fgsm(0.1), loss, w, batch, 0.1)
    np.testing.assert_allclose(mixed["image"][: n // 10], got[: n // 10], atol=1e-6)
    np.testing.assert_array_equal(mixed["image"][n // 10 :], image[n // 10 :])
    assert mixed["a"] is batch["a"]
