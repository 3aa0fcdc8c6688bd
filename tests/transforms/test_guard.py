"""A guarded learning rate: bounds by hand, what it leaves alone, and rates that would diverge."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hessabs
from hessabs.transforms.guard import limited
from tests.transforms.cases import gradient, loss_fn, make_batch, make_params

pytestmark = pytest.mark.sampled


def course(tx, params, batches, loss=loss_fn):
    """The params after each update, and the states."""
    state, out = tx.init(params), []

    @jax.jit
    def update(params, state, batch):
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params, loss_fn=loss, batch=batch)
        return optax.apply_updates(params, updates), state

    for batch in batches:
        params, state = update(params, state, batch)
        out.append((params, state))
    return out


def by_hand(matrix, w, schedule, threshold, count):
    """The rates of gradient descent on w'Aw / 2 in float64, as the docstring says it."""
    slope = curvature = 0.0
    limit, peak, rates = np.inf, 0.0, []
    for step in range(count):
        rate = schedule(step)
        peak = max(peak, rate)
        decay, g = rate / peak, matrix @ w
        slope, curvature = 0.9 * slope + 0.1 * (g @ g), 0.9 * curvature + 0.1 * (g @ matrix @ g)
        bearable = threshold * slope / curvature
        moved = max(min(limit, bearable / decay), bearable)
        limit = moved if np.isinf(limit) else min(max(moved, limit / 2), 2 * limit)
        rates.append(decay * min(peak, limit))
        w = w - rates[-1] * g
    return rates, w


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_rates_are_those_by_hand(threshold):
    matrix = np.diag([4.0, 1.0, 0.25])
    loss = lambda w, batch: w @ (batch @ w) / 2  # noqa: E731
    schedule = lambda count: 3.0 * jnp.minimum((count + 1) / 4, (20 - count) / 16)  # noqa: E731
    tx = hessabs.guarded_learning_rate(schedule, threshold)
    batch = jnp.asarray(matrix, jnp.float32)
    got = course(tx, jnp.ones(3), [batch] * 20, loss)
    rates, w = by_hand(matrix, np.ones(3), lambda step: float(schedule(step)), threshold, 20)
    np.testing.assert_allclose([state.learning_rate for _, state in got], rates, rtol=2e-4)
    np.testing.assert_allclose(got[-1][0], w, rtol=1e-3, atol=1e-6)
    assert min(rates) < 1.0 < max(float(schedule(step)) for step in range(20))  # the guard had to act


def test_a_rate_that_is_bearable_is_left_as_it_is():
    schedule = optax.warmup_cosine_decay_schedule(0.0, 0.05, 3, 12)
    batches = [make_batch(seed=seed) for seed in range(12)]
    chains = (
        optax.chain(optax.trace(0.9), last(schedule))
        for last in (hessabs.guarded_learning_rate, optax.scale_by_learning_rate)
    )
    guarded, plain = (course(optax.with_extra_args_support(tx), make_params(), batches)[-1][0] for tx in chains)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), guarded, plain)


@pytest.mark.parametrize(
    "direction",
    [optax.trace(0.9), optax.scale_by_adam(), optax.contrib.muon(-1.0)],
    ids=["sgd", "adam", "muon"],
)
def test_rates_far_too_large_train(direction):
    batches = [make_batch(64, seed=seed) for seed in range(40)]

    def end(last):
        params = course(optax.with_extra_args_support(optax.chain(direction, last)), make_params(), batches)
        return float(loss_fn(params[-1][0], batches[0]))

    rate = optax.linear_schedule(50.0, 0.0, 40)
    before, guarded = float(loss_fn(make_params(), batches[0])), end(hessabs.guarded_learning_rate(rate, 1.0))
    assert guarded < 0.5 * before
    assert end(optax.scale_by_learning_rate(rate)) > 2 * before  # without the guard


@pytest.mark.parametrize("flip_sign", [True, False])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_signs_are_those_of_the_plain_rate(sign, flip_sign):
    # Downhill the rate is limited; uphill, where the other two go, there is nothing to guard.
    matrix = jnp.diag(jnp.array([4.0, 1.0, 0.25]))
    loss = lambda w, batch: w @ (batch @ w) / 2  # noqa: E731
    downhill = (sign > 0) == flip_sign

    def end(last, rate, count=10):
        return course(
            optax.with_extra_args_support(last(rate, flip_sign=flip_sign)), jnp.ones(3), [matrix] * count, loss
        )

    guarded = end(hessabs.guarded_learning_rate, sign * 0.01)
    assert np.sign(guarded[-1][1].learning_rate) == sign
    assert (loss(guarded[-1][0], matrix) < loss(jnp.ones(3), matrix)) == downhill
    np.testing.assert_allclose(guarded[-1][0], end(optax.scale_by_learning_rate, sign * 0.01)[-1][0], rtol=1e-5)
    if downhill:
        rates = [float(state.learning_rate) for _, state in end(hessabs.guarded_learning_rate, sign * 3.0)]
        assert all(0 < sign * rate < 3 for rate in rates)


finite = st.floats(1e-3, 1e3)


@settings(max_examples=200, deadline=None)
@given(finite, finite, finite, st.floats(0.01, 1.0))
def test_the_limit_goes_to_what_is_bearable_and_stays_between(limit, slope, curvature, decay):
    new = float(limited(*(jnp.float32(x) for x in (limit, 1.0, slope, curvature, decay))))
    bearable = slope / curvature
    close = 1 + 1e-5
    assert limit / 2 / close <= new <= limit * 2 * close
    if new > limit / 2 * close:  # as far down as it had to go
        assert decay * new <= bearable * close
    if new < limit * 2 / close:  # and up
        assert new >= bearable / close
    if bearable * close <= limit <= bearable / decay / close:
        assert new == pytest.approx(limit)


@pytest.mark.parametrize(
    ("slope", "curvature", "want"),
    [(-1.0, 1.0, 4.0), (1.0, -1.0, 16.0), (-1.0, -1.0, 16.0), (0.0, 0.0, 16.0)],
    ids=["uphill", "bends down", "uphill, bends down", "nothing moves"],
)
def test_ground_of_any_shape(slope, curvature, want):
    limit, decay = jnp.float32(8.0), jnp.float32(1.0)
    assert limited(limit, 2.0, jnp.float32(slope), jnp.float32(curvature), decay) == want
    first = limited(jnp.float32(jnp.inf), 2.0, jnp.float32(slope), jnp.float32(curvature), decay)
    assert jnp.isinf(first)  # nothing is known yet


def test_it_measures_at_the_first_update_and_every_third():
    states = [
        s for _, s in course(hessabs.guarded_learning_rate(0.1, every=3), make_params(), [make_batch()] * 7)
    ]
    slopes = [float(state.slope) for state in states]
    changed = [0] + [i for i in range(1, 7) if slopes[i] != slopes[i - 1]]
    assert slopes[0] > 0
    assert changed == [0, 3, 6]


def test_it_looks_at_the_first_examples_alone():
    batch, params = make_batch(16), make_params()
    broken = {name: array.at[4:].set(jnp.nan) for name, array in batch.items()}
    head = {name: array[:4] for name, array in batch.items()}
    got, want = (
        tx.update(gradient(params, head), tx.init(params), params, loss_fn=loss_fn, batch=given)
        for tx, given in (
            (hessabs.guarded_learning_rate(9.0, examples=4), broken),
            (hessabs.guarded_learning_rate(9.0), head),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert 0 < float(got[1].learning_rate) < 9


def test_what_is_not_finite_is_not_counted():
    params, tx = make_params(), hessabs.guarded_learning_rate(9.0)
    _, state = tx.update(
        gradient(params, make_batch()), tx.init(params), params, loss_fn=loss_fn, batch=make_batch()
    )
    broken = {name: array * jnp.nan for name, array in make_batch().items()}
    _, after = tx.update(gradient(params, make_batch()), state, params, loss_fn=loss_fn, batch=broken)
    for name in ("limit", "slope", "curvature", "learning_rate"):
        assert getattr(after, name) == getattr(state, name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "`threshold` must be positive and finite, got 0.0"),
        ({"every": 0}, "`every` must be at least 1, got 0"),
        ({"examples": 0}, "`examples` must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        hessabs.guarded_learning_rate(0.1, **settings)


def test_what_is_missing_is_named():
    tx, params = hessabs.guarded_learning_rate(0.1), make_params()
    with pytest.raises(ValueError, match="needs loss_fn, batch: call update"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="needs params"):
        tx.update(params, tx.init(params), loss_fn=loss_fn, batch=make_batch())


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("warm_up", [20, 1])
def test_a_warm_up_from_0_is_guarded_from_its_first_update(warm_up, every):
    matrix = jnp.diag(jnp.array([4.0, 1.96, 1.0]))  # the edge is 0.5, and the rate ten times that

    def loss(w, batch):
        return w @ batch @ w / 2

    tx = hessabs.guarded_learning_rate(optax.linear_schedule(0.0, 5.0, warm_up), every=every)
    states = [state for _, state in course(tx, jnp.ones(3), [matrix] * 30, loss)]
    assert float(states[0].limit) == pytest.approx(2 * (16 + 1.96**2 + 1) / (64 + 1.96**3 + 1), rel=1e-5)
    assert max(float(state.learning_rate) for state in states) < 1.3


@pytest.mark.slow
def test_momentum_on_small_batches_needs_a_threshold_of_one():
    """What the docstring warns of: a step that spares its own batch may raise the loss of others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5)).astype(np.float32)
    batches = [x[rng.permutation(400)[:16]] for _ in range(200)]

    def loss(w, batch):
        return jnp.mean((batch @ (w - jnp.arange(5.0))) ** 2)

    def end(threshold):
        tx = optax.chain(optax.trace(0.9), hessabs.guarded_learning_rate(5.0, threshold))
        return float(loss(course(tx, jnp.zeros(5), batches, loss)[-1][0], x))

    assert end(1.0) < 1e-2
    assert end(2.0) > loss(jnp.zeros(5), x)
