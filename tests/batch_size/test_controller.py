"""The protocol: shared checks, and properties that every rule has under any sequence of measurements."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hessabs.batch_size import (
    NEVER,
    Controller,
    Count,
    Decision,
    Observation,
    Rule,
    absa,
    adascale,
    batch_growth,
    constant,
    cyclical,
    fixed_growth,
    gradient_noise_scale,
    hessian_adaptive,
    linear_scaling,
    make_controller,
    norm_test,
    ramp,
    restore,
    stability_limited,
    timer,
    with_adversarial,
    with_coupling,
    with_decay,
)
from hessabs.batch_size.counting import next_event
from hessabs.batch_size.rule import Decay
from tests.batch_size import drive

DECAYS = (333, 2000)


def shared(rule, decrease=2.0):
    return with_adversarial(with_decay(rule, DECAYS, 0.3), 0.2, decrease=decrease, until=1300)


ABSA = {"measure_every": 100, "eigenvalue_decrease": 1.5, "growth_factor": 1.5, "patience": 3}
GROWTH = {"lr_decay_at": (333, 800, 2000), "lr_decay": 0.3}
EVERY = {"measure_every": 100}
WHOLE_ABSA = with_decay(absa(48, 48 * 7, fraction_decrease=3.0, adversarial_until=1300, **ABSA), DECAYS, 0.3)
BY_RATE = with_coupling(hessian_adaptive(48, 48 * 7, signal="eigenvalue_times_lr", **ABSA), "sqrt")
INNER = norm_test(48, 48 * 7, test="inner_product", tolerance=0.2, **EVERY)
CONTROLLERS = {
    "constant": shared(constant(96)),
    "linear_scaling": shared(linear_scaling(96, base_batch_size=31, warmup=700)),
    "batch_growth": with_adversarial(batch_growth(48, 48 * 7, **GROWTH), 0.2, decrease=1.0, until=1300),
    "fixed_growth": shared(fixed_growth(48, 48 * 7, grow_at=(333, 1000), growth_factor=2.5)),
    "timer": with_coupling(shared(timer(48, 48 * 7, every=400, growth_factor=1.5)), "sqrt"),
    "cyclical": shared(cyclical(48, 48 * 4, cycle=1000)),
    "triangular": with_coupling(shared(cyclical(48, 48 * 7, cycle=1001, shape="triangular")), "linear"),
    "abs": hessian_adaptive(96, 96 * 20, measure_every=200, growth_factor=3.0, patience=4),
    "absa": WHOLE_ABSA,
    "absa_sqrt": shared(BY_RATE, 3.0),
    "absa_none": with_coupling(WHOLE_ABSA, "none"),
    "hessianflow": hessian_adaptive(48, 48 * 8, measure_every=200, patience=3, compatibility="hessianflow"),
    "stability": shared(stability_limited(48, 48 * 7, lr=0.1, **EVERY)),
    "stability_shrinking": shared(stability_limited(48, 48 * 8, lr=0.1, limit_lr=True, **EVERY)),
    "gradient_noise_scale": shared(gradient_noise_scale(48, 48 * 7, **EVERY)),
    "ramp": shared(ramp(48, 48 * 7, lr_schedule=lambda samples: 1 - samples / 9000, total=9000, **EVERY)),
    "norm_test": shared(norm_test(48, 48 * 7, tolerance=0.3, **EVERY)),
    "inner_product": shared(INNER),
    "adascale": shared(adascale(48 * 7, base_batch_size=48, measure_every=400, average_over=2)),
}
MEASURED = [name for name, controller in CONTROLLERS.items() if controller.measures != "nothing"]
# Of these the learning rate is not the decayed base rate times the growth of the batch.
OTHER_RATES = ("linear_scaling", "batch_growth", "stability_shrinking", "adascale")
COUPLINGS = {"timer": np.sqrt, "absa_sqrt": np.sqrt, "absa_none": np.ones_like, "cyclical": np.ones_like}
scans = functools.cache(lambda name: drive.scan(CONTROLLERS[name]))  # lazily: collecting must cost nothing
started = functools.cache(lambda name: jax.device_get(CONTROLLERS[name].init()))
UPDATES = 40
# Each shares its arithmetic with one of the others.
SLOW = ("constant", "fixed_growth", "triangular", "absa_none", "stability", "inner_product", "hessianflow")
ALL = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CONTROLLERS]

ODD = [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-38, 3e38]
eigenvalues = st.lists(
    st.one_of(st.floats(0.0078125, 128.0, width=32), st.sampled_from(ODD)),
    min_size=UPDATES,
    max_size=UPDATES,
)
few = settings(max_examples=3, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def draw(name):
    """Measurements as hypothesis draws them, for what takes too long for several examples."""
    rng = np.random.default_rng(len(name))
    return np.where(rng.random(UPDATES) < 0.2, rng.choice(ODD, UPDATES), 2 ** rng.uniform(-7, 7, UPDATES))


@pytest.mark.sampled
@pytest.mark.parametrize("name", ALL)
def test_a_python_loop_and_a_scan_give_the_same_bits(name):
    values, few = draw(name), 16
    states = drive.stack(drive.host(CONTROLLERS[name], values[:few]))
    drive.assert_same_bits(states, jax.tree.map(lambda leaf: leaf[:few], scans(name)(values)))


@pytest.mark.parametrize("name", ["linear_scaling", "absa_sqrt", "adascale"])
def test_one_call_at_a_time_is_traced_once_and_gives_the_same_bits_too(name):
    traces, values = [], draw(name)

    def update(observation, state):
        traces.append(None)
        return CONTROLLERS[name].update(observation, state)

    states = drive.host(CONTROLLERS[name], values, update=jax.jit(update))
    drive.assert_same_bits(drive.stack(states), scans(name)(values))
    assert len(traces) == 1


@pytest.mark.parametrize("name", ALL)
@few
@given(values=eigenvalues)
def test_decisions_keep_their_bounds(name, values):
    first = started(name)
    later = scans(name)(values)
    states = jax.tree.map(lambda one, more: np.concatenate([one[None], more]), first, later)
    initial = int(first.batch_size)
    if name not in ("cyclical", "triangular"):
        assert (np.diff(states.batch_size) >= 0).all()
    assert initial <= states.batch_size.min()
    assert states.batch_size.max() <= initial * (20 if name == "abs" else 8)
    assert (states.batch_size % initial == 0).all()
    samples = np.concatenate([[0], np.cumsum(states.batch_size[:-1])])
    # What is due is always still to come.
    assert (states.observe_at.high * 2.0**30 + states.observe_at.low > samples).all()

    assert (np.diff(states.adversarial_fraction) <= 0).all()
    assert states.adversarial_fraction.min() >= 0
    if name not in ("abs", "hessianflow"):
        assert (states.adversarial_fraction[samples >= 1300] == 0).all()
        assert states.adversarial_fraction[0] > 0

    assert (states.lr_scale > 0).all()
    if name in OTHER_RATES:
        return
    at = () if name in ("abs", "hessianflow") else DECAYS
    base = np.prod([np.where(samples >= point, 0.3, 1.0) for point in at], axis=0) * np.ones(len(samples))
    coupled = COUPLINGS.get(name, np.asarray)(states.batch_size / initial)
    np.testing.assert_allclose(states.lr_scale / coupled, base, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
@few
@given(values=eigenvalues, cut=st.integers(1, UPDATES - 1))
def test_a_saved_state_has_the_same_future(name, values, cut):
    controller, whole = CONTROLLERS[name], scans(name)(values)
    samples = int(started(name).batch_size) + int(whole.batch_size[: cut - 1].sum())
    restored = restore(controller, jax.tree.map(lambda leaf: leaf[cut - 1], whole))
    rest = scans(name)(values[cut:] + values[:cut], restored, samples)
    left = UPDATES - cut
    drive.assert_same_bits(
        jax.tree.map(lambda leaf: leaf[:left], rest), jax.tree.map(lambda leaf: leaf[cut:], whole)
    )


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_state_keeps_its_shape_and_types(name):
    state = CONTROLLERS[name].init()
    later = CONTROLLERS[name].update(drive.observer(CONTROLLERS[name])(10_000, np.float32(1)), state)
    assert jax.tree.structure(state) == jax.tree.structure(later)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(later), strict=True):
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)
    assert [x.dtype for x in (*state[:3], *state.observe_at, state.measure)] == [
        jnp.int32,
        jnp.float32,
        jnp.float32,
        jnp.int32,
        jnp.int32,
        bool,
    ]


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in SLOW])
@few
@given(bad=st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -1.0, -50.0, 1e-39]))
def test_what_is_no_measurement_never_grows_the_batch(name, bad):
    states = scans(name)([bad] * UPDATES)
    assert (states.batch_size == states.batch_size[0]).all()
    assert np.isfinite(states.lr_scale).all()


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in (*SLOW, "adascale")])
def test_a_measured_rule_grows_when_it_should(name):
    falling, noisy = [1e4 * 0.5**k for k in range(UPDATES)], [120.0] * UPDATES
    values = noisy if CONTROLLERS[name].measures == "gradient" else falling
    assert int(scans(name)(values).batch_size[-1]) > 48 * 6


@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_two_fields_share_a_buffer_so_that_the_state_may_be_donated(name):
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(CONTROLLERS[name].init())]
    assert len(set(pointers)) == len(pointers)


def test_a_controller_is_two_functions():
    controller = Controller(lambda: None, lambda observation, state: state)
    assert controller.update(Observation(3), None) is None
    assert controller.measures == "eigenvalue"


def test_a_state_of_another_rule_is_refused_with_both_sides():
    absa, gns = CONTROLLERS["absa"], CONTROLLERS["gradient_noise_scale"]
    with pytest.raises(ValueError, match=r"at .rule.* it has .* and the rule has"):
        restore(gns, absa.init())
    with pytest.raises(ValueError, match=r"at .rule.average.noise it has float32.. and the rule has nothing"):
        restore(CONTROLLERS["timer"], gns.init())
    with pytest.raises(ValueError, match="its batch size is 48 and the rule's go from 96 to 96"):
        restore(CONTROLLERS["constant"], CONTROLLERS["timer"].init())


def test_next_event_skips_the_past():
    assert int(next_event(Count.of(100), (100, 50))) == NEVER
    assert int(next_event(Count.of(0), ())) == NEVER
    assert int(next_event(Count.of(49), (Count.of(100), 10**14, 50))) == 50
    assert int(next_event(Count.of(50), (Count.of(10**13), 10**14, 50))) == 10**13


@pytest.mark.parametrize("at", [(0,), (5, 5), (9, 3), (NEVER,), (-1,)])
def test_decay_points_must_ascend_from_above_zero(at):
    with pytest.raises(ValueError, match="`at` must be positive"):
        with_decay(constant(8), at, 0.5)


@pytest.mark.parametrize("factor", [0.0, 1.5, -0.1, float("nan")])
def test_decay_must_lie_in_its_range(factor):
    with pytest.raises(ValueError, match="`factor` must lie in"):
        with_decay(constant(8), (10,), factor)


def test_decay_is_the_exact_product():
    decay = Decay((10, 20, 30), 0.2)
    got = [float(decay.scale(Count.of(samples))) for samples in (9, 10, 20, 30)]
    assert got == [np.float32(0.2**k) for k in range(4)]
    assert float(jax.jit(decay.scale)(Count.of(30))) == got[-1]


def test_decays_around_each_other_multiply_and_the_last_fraction_and_coupling_hold():
    rule = with_decay(with_decay(timer(2, 8, every=10), (10, 30), 0.5), (20,), 0.1)
    rule = with_coupling(with_coupling(rule, "none"), "sqrt")
    rule = with_adversarial(with_adversarial(rule, 0.9, until=5), 0.4)
    state, seen = rule.init(), []
    while int(state.observe_at) != NEVER:
        at = int(state.observe_at)
        state = rule.update(Observation(at), state)
        seen.append((at, float(state.lr_scale), float(state.adversarial_fraction)))
    want = [(10, 0.5 * 2**0.5, 0.2), (20, 0.05 * 2, 0), (30, 0.025 * 2, 0)]
    np.testing.assert_allclose(seen, want, rtol=1e-6)


def test_a_rule_of_ones_own_is_wrapped_like_any_other():
    def decide(batch_size, rate, **options):
        return Decision(jnp.asarray(batch_size, jnp.int32), rate.of(batch_size), **options)

    rule = Rule(
        lambda rate: decide(8, rate, measure_at=100),
        lambda told, state, rate: decide(jnp.where(told.eigenvalue < 2, 16, 8), rate),
        (8, 16),
        measures="eigenvalue",
    )
    controller = with_adversarial(with_decay(make_controller(rule), (100,), 0.5), 0.3)
    state = controller.update(Observation(100, 1.0), controller.init())
    assert (int(state.batch_size), float(state.lr_scale), float(state.adversarial_fraction)) == (16, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"with_decay goes around a rule of .* got a Controller that was made"):
        with_decay(Controller(controller.init, controller.update), (1,), 0.5)


@pytest.mark.parametrize(
    ("initial", "maximum", "message"),
    [
        (0, 4, "`initial` must lie"),
        (8, 4, "`initial` must lie"),
        (3, 2**31, "below 2.* examples per update, got 2147483648"),
    ],
)
def test_batch_sizes_must_fit(initial, maximum, message):
    with pytest.raises(ValueError, match=message):
        make_controller(Rule(lambda rate: None, lambda *args: None, (initial, maximum)))
