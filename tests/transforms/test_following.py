"""What follows the batch, against closed forms that know examples alone, and against optax where it stays."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessabs

pytestmark = pytest.mark.sampled

B0 = 16
# The same 256 examples each: constant, grown, shrunk, and sizes that are no multiple of the reference.
STREAMS = [[16] * 16, [16, 16, 32, 64, 128], [128, 64, 8, 8, 48], [20, 36, 200]]
CONSTANT = jnp.array([2.0, -0.5, 1e-3])


def follow(tx, batches, gradient=CONSTANT, params=None):
    """Feed one gradient in batches of these sizes; return the updates and the last state."""
    params, out = jnp.zeros_like(gradient) if params is None else params, []
    state, update = tx.init(params), jax.jit(tx.update)
    for size in batches:
        updates, state = update(gradient, state, params, num_examples=size)
        params = optax.apply_updates(params, updates)
        out.append(np.asarray(updates))
    return out, state


def ends(batches):
    return np.cumsum(batches) / B0


@pytest.mark.parametrize("batches", STREAMS)
def test_an_average_of_a_constant_depends_on_the_examples_alone(batches):
    tx = hessabs.by_examples(optax.ema, batch_size=B0)(decay=0.95, debias=False)
    out, _ = follow(tx, batches)
    for got, end in zip(out, ends(batches), strict=True):
        np.testing.assert_allclose(got, CONSTANT * (1 - 0.95**end), rtol=2e-5)
    out, _ = follow(hessabs.by_examples(optax.ema, batch_size=B0)(decay=0.95, debias=True), batches)
    np.testing.assert_allclose(out, [CONSTANT] * len(batches), rtol=2e-5)


@pytest.mark.parametrize("batches", STREAMS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_momentum_of_sgd_is_a_sum_that_keeps_its_gain(batches, nesterov):
    tx = hessabs.by_examples(optax.sgd, batch_size=B0)(0.1, momentum=0.9, nesterov=nesterov)
    out, _ = follow(tx, batches)
    for got, end, size in zip(out, ends(batches), batches, strict=True):
        k = size / B0
        trace = 10 * (1 - 0.9**end)  # of a constant gradient of 1
        if nesterov:
            trace = 10 * (1 - 0.9**k) + 0.9**k * trace
        np.testing.assert_allclose(got, -0.1 * k * trace * CONSTANT, rtol=2e-5)


@pytest.mark.parametrize("form", ["half_life", "sde"])
@pytest.mark.parametrize("batches", STREAMS)
def test_the_step_of_adam_is_its_rate_however_early_the_batch_grows(batches, form):
    make = hessabs.by_examples(optax.adam, batch_size=B0, form=form)
    # The SDE form keeps products of betas to first order alone.
    b1, rtol = (0.9, 1e-3) if form == "half_life" else (0.0, 1e-2)
    out, _ = follow(make(0.01, b1=b1, b2=0.999, eps=0.0), batches)
    want = [-0.01 * np.sqrt(size / B0) * np.sign(CONSTANT) for size in batches]
    np.testing.assert_allclose(out, want, rtol=rtol)


def test_the_sde_form_by_hand():
    make = hessabs.by_examples(optax.adamw, batch_size=B0, form="sde")
    _, state = follow(make(1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1), [16, 64])
    want = {"learning_rate": 2e-3, "b1": 0.6, "b2": 0.996, "eps": 5e-9, "weight_decay": 0.2}
    assert state.inner_state.hyperparams.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(optax.tree.get(state, name), value, rtol=1e-6)


@pytest.mark.parametrize("lr_coupling", ["sqrt", "linear", "none"])
@pytest.mark.parametrize("batches", STREAMS)
def test_weight_decay_forgets_by_examples(batches, lr_coupling):
    make = hessabs.by_examples(optax.adamw, batch_size=B0, lr_coupling=lr_coupling)
    out, _ = follow(make(0.01, weight_decay=0.5), batches, gradient=jnp.zeros(3), params=jnp.ones(3))
    left = 1 + np.sum(out, axis=0)
    np.testing.assert_allclose(left, np.prod([1 - 0.005 * size / B0 for size in batches]), rtol=1e-6)
    np.testing.assert_allclose(left, 0.995**16, rtol=16 * 0.04**2)  # to first order in an update


SAME = {
    "adabelief": functools.partial(optax.adabelief, 0.1),
    "adafactor": functools.partial(optax.adafactor, 0.1, weight_decay_rate=0.01),
    "adamax": functools.partial(optax.adamax, 0.1),
    "adamw": functools.partial(optax.adamw, 0.1, weight_decay=0.1, mask={"w": True, "count": False}),
    "adan": functools.partial(optax.adan, 0.1),
    "amsgrad": functools.partial(optax.amsgrad, 0.1),
    "lamb": functools.partial(optax.lamb, 0.1, weight_decay=0.1),
    "lion": functools.partial(optax.lion, 0.1),
    "muon": functools.partial(optax.contrib.muon, 0.1),
    "nadamw": functools.partial(optax.nadamw, 0.1),
    "novograd": functools.partial(optax.novograd, 0.1),
    "radam": functools.partial(optax.radam, 0.1),
    "rmsprop": functools.partial(optax.rmsprop, 0.1),
    "sgd": functools.partial(optax.sgd, 0.1, momentum=0.9),
    "yogi": functools.partial(optax.yogi, 0.1),
}


@pytest.mark.parametrize("name", SAME)
def test_at_the_reference_batch_it_is_what_optax_does(name):
    plain = SAME[name]
    params = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "count": jnp.float32(0.5)}
    tx = hessabs.by_examples(plain.func, batch_size=B0)(*plain.args, **plain.keywords)
    outs = []
    for transformation, extra in ((plain(), {}), (tx, {"num_examples": B0})):
        state, p = transformation.init(params), params

        @jax.jit
        def step(p, state, number, transformation=transformation, extra=extra):
            gradient = jax.tree.map(lambda x: jnp.sin(3 * x + number), p)
            updates, state = transformation.update(gradient, state, p, **extra)
            return optax.apply_updates(p, updates), state

        for number in range(3):
            p, state = step(p, state, number)
        outs.append(p)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *outs)


def test_schedules_are_read_by_examples_as_arguments_and_inside():
    batches, steps = [16, 16, 64, 24, 16], [0, 1, 2, 6, 7.5]

    def schedule(step):
        return 1.0 + step

    def inside(decay):
        return optax.chain(optax.ema(decay), optax.scale_by_schedule(schedule))

    tx = hessabs.by_examples(optax.sgd, batch_size=B0, lr_coupling="none")(learning_rate=schedule)
    out, _ = follow(tx, batches, gradient=jnp.ones(1))
    np.testing.assert_allclose(np.ravel(out), [-(1 + step) for step in steps], rtol=1e-6)
    out, _ = follow(hessabs.by_examples(inside, batch_size=B0)(0.9), batches, gradient=jnp.ones(1))
    np.testing.assert_allclose(np.ravel(out), [1 + step for step in steps], rtol=1e-5)


def test_it_goes_by_what_accumulation_saw_while_a_rule_grows_the_batch():
    rule = hessabs.batch_size.with_coupling(hessabs.batch_size.timer(B0, 64, every=64), "none")
    inner = optax.chain(
        hessabs.by_examples(optax.adam, batch_size=B0)(0.1, b1=0.9, b2=0.99), hessabs.adaptive_batch_size(rule)
    )
    tx = hessabs.accumulate(inner, micro_batch_size=8)
    params, traces, seen = jnp.zeros(3), [], []
    state = tx.init(params)

    @jax.jit
    def update(state):
        traces.append(None)
        return tx.update(CONSTANT, state, params)

    for _ in range(48):
        updates, state = update(state)
        if state.updated:
            seen.append([float(optax.tree.get(state, name)) for name in ("b1", "b2", "learning_rate")])
            np.testing.assert_allclose(updates, -seen[-1][2] * np.sign(CONSTANT), rtol=1e-3)
    sizes = [16] * 4 + [32] * 2 + [64] * 4
    want = [[0.9 ** (n / B0), 0.99 ** (n / B0), 0.1 * (n / B0) ** 0.5] for n in sizes]
    np.testing.assert_allclose(seen, want, rtol=1e-6)
    assert len(traces) == 1


def test_betas_of_bfloat16_params_stay_float32():
    tx = hessabs.by_examples(optax.adam, batch_size=B0)(0.1, b2=0.999)
    params = jnp.ones(2, jnp.bfloat16)
    updates, state = tx.update(params, tx.init(params), params, num_examples=B0)
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_allclose(optax.tree.get(state, "b2"), 0.999, rtol=1e-7)  # 1.0 in bfloat16


def test_batch_size_is_another_name_and_fewer_than_one_example_act_as_one():
    tx = hessabs.by_examples(optax.adam, batch_size=B0)(0.1)
    state = tx.init(CONSTANT)
    one, _ = tx.update(CONSTANT, state, CONSTANT, batch_size=64)
    two, _ = tx.update(CONSTANT, state, CONSTANT, num_examples=64, batch_size=1)
    np.testing.assert_array_equal(one, two)
    none, _ = jax.jit(tx.update)(CONSTANT, state, CONSTANT, num_examples=jnp.int32(0))
    single, _ = jax.jit(tx.update)(CONSTANT, state, CONSTANT, num_examples=jnp.int32(1))
    np.testing.assert_array_equal(none, single)


def test_own_laws_and_what_is_to_stay():
    def make(rate, my_decay, b1):
        return optax.chain(optax.ema(my_decay), optax.ema(b1), optax.scale(-rate))

    laws = {"my_decay": lambda value, growth: value**growth, "b1": None}
    tx = hessabs.by_examples(make, batch_size=B0, follow=laws)(1.0, 0.9, 0.5)
    _, state = follow(tx, [64])
    assert state.inner_state.hyperparams == {"my_decay": pytest.approx(0.6561)}


@pytest.mark.parametrize(
    ("factory", "options", "arguments", "message"),
    [
        (optax.adam, {"batch_size": 0}, (0.1,), "`batch_size` must be at least 1, got 0"),
        (optax.adam, {"lr_coupling": "cubic"}, (0.1,), "`lr_coupling` must be one of"),
        (optax.adam, {}, (0.1, 1.0), r"`b1` must lie in \[0, 1\), got 1.0"),
        (optax.clip, {}, (1.0,), "no number in the arguments of clip that follows"),
        (optax.lars, {}, (0.1,), "whether the `momentum` of lars is a sum or a mean"),
        (optax.adam, {"follow": {"beta_1": None}}, (0.1,), "`follow` names 'beta_1', but .*b1, b2"),
    ],
)
def test_bad_options(factory, options, arguments, message):
    with pytest.raises(ValueError, match=message):
        hessabs.by_examples(factory, **{"batch_size": B0, **options})(*arguments)


def test_the_examples_must_be_given():
    tx = hessabs.by_examples(optax.adam, batch_size=B0)(0.1)
    with pytest.raises(ValueError, match=r"needs the examples of this update.*num_examples="):
        tx.update(CONSTANT, tx.init(CONSTANT), CONSTANT)


class Counted(NamedTuple):
    """Params with a field of the name of a counter."""

    count: jax.Array
    w: jax.Array


def test_a_param_that_is_called_count_is_none():
    params = Counted(jnp.ones(()), jnp.ones(2))
    tx, plain = hessabs.by_examples(optax.adamw, batch_size=B0)(0.1), optax.adamw(0.1)
    state, plain_state = tx.init(params), plain.init(params)
    for _ in range(5):
        got, state = tx.update(params, state, params, num_examples=B0)
        want, plain_state = plain.update(params, plain_state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_counts_of_other_things_stay():
    def factory(learning_rate):
        return optax.chain(optax.sgd(learning_rate), optax.contrib.reduce_on_plateau(accumulation_size=2))

    tx = hessabs.by_examples(factory, batch_size=B0)(1.0)
    state = tx.init(CONSTANT)
    for count in (1, 0, 1):
        _, state = tx.update(CONSTANT, state, CONSTANT, num_examples=B0, value=1.0)
        assert int(state.inner_state.inner_state[1].count) == count


def test_a_count_of_batches_stays_at_its_largest():
    tx = hessabs.by_examples(optax.adam, batch_size=1)(0.1)
    state = tx.init(jnp.zeros(1))._replace(whole=jnp.int32(2**31 - 100))
    for _ in range(3):
        updates, state = tx.update(jnp.ones(1), state, jnp.zeros(1), num_examples=64)
    assert int(state.whole) == 2**31 - 1
    assert bool(jnp.isfinite(updates).all())
