"""The protocol: shared checks, and properties that every rule has under any sequence of measurements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.batch_size import drive

from hessabs.batch_size import NEVER, Controller, Observation, constant, hessian_adaptive, linear_scaling
from hessabs.batch_size.controller import check_batch_sizes, check_decay, next_event

CONTROLLERS = {
    "constant": constant(
        96, lr_decay_at=(500, 1500), lr_decay=0.3, adversarial_fraction=0.2, adversarial_until=900
    ),
    "fb": linear_scaling(96, base_batch_size=31, warmup=700, lr_decay_at=(600,), lr_decay=0.3),
    "abs": hessian_adaptive(96, 96 * 20, measure_every=200, growth_factor=3.0, patience=4),
    "absa": hessian_adaptive(
        48,
        48 * 7,
        measure_every=100,
        eigenvalue_decrease=1.5,
        growth_factor=1.5,
        patience=3,
        adversarial_fraction=0.2,
        fraction_decrease=3.0,
        adversarial_until=1300,
        lr_decay_at=(333, 2000),
        lr_decay=0.3,
    ),
}
BASE_RATES = {"constant": ((500, 1500), 0.3), "fb": None, "abs": ((), 1.0), "absa": ((333, 2000), 0.3)}
SCANS = {name: drive.scan(controller) for name, controller in CONTROLLERS.items()}
JITTED = {name: jax.jit(controller.update) for name, controller in CONTROLLERS.items()}
UPDATES = 40

eigenvalues = st.lists(
    st.one_of(
        st.floats(0.0078125, 128.0, width=32),
        st.sampled_from([0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e-38, 3e38]),
    ),
    min_size=UPDATES,
    max_size=UPDATES,
)
few = settings(max_examples=12, deadline=None)


@pytest.mark.parametrize("name", CONTROLLERS)
@few
@given(values=eigenvalues)
def test_host_jit_and_scan_give_the_same_bits(name, values):
    controller = CONTROLLERS[name]
    states = drive.host(controller, values)
    drive.assert_same_bits(states, drive.host(controller, values, update=JITTED[name]))
    drive.assert_same_bits(drive.stack(states), SCANS[name](np.asarray(values, np.float32)))


@pytest.mark.parametrize("name", CONTROLLERS)
@few
@given(values=eigenvalues)
def test_decisions_keep_their_bounds(name, values):
    controller = CONTROLLERS[name]
    first = controller.init()
    states = drive.stack([first, *drive.host(controller, values, update=JITTED[name])])
    initial = int(first.batch_size)
    assert (np.diff(states.batch_size) >= 0).all()
    assert states.batch_size.max() <= initial * 20
    assert (states.batch_size % initial == 0).all()
    assert (np.diff(states.adversarial_fraction) <= 0).all()
    assert states.adversarial_fraction.min() >= 0

    if BASE_RATES[name] is None:
        return  # its learning rate has tests of its own
    at, factor = BASE_RATES[name]
    samples = np.concatenate([[0], np.cumsum(states.batch_size[:-1])])
    base = np.prod([np.where(samples >= point, factor, 1.0) for point in at], axis=0) * np.ones(len(samples))
    np.testing.assert_allclose(states.lr_scale * initial / states.batch_size, base, rtol=1e-6)


@pytest.mark.parametrize("name", ["constant", "absa"])
@few
@given(values=eigenvalues)
def test_adversarial_examples_end_by_their_time(name, values):
    controller = CONTROLLERS[name]
    states = drive.stack([controller.init(), *drive.host(controller, values, update=JITTED[name])])
    samples = np.concatenate([[0], np.cumsum(states.batch_size[:-1])])
    until = {"constant": 900, "absa": 1300}[name]
    assert (states.adversarial_fraction[samples >= until] == 0).all()
    assert states.adversarial_fraction[0] > 0


@pytest.mark.parametrize("name", CONTROLLERS)
@few
@given(values=eigenvalues)
def test_what_is_due_is_always_still_to_come(name, values):
    samples = 0
    state = CONTROLLERS[name].init()
    for value in values:
        samples += int(state.batch_size)
        if samples >= int(state.observe_at):
            state = JITTED[name](drive.eigenvalue(np.int32(samples), np.float32(value)), state)
            assert int(state.observe_at) > samples


@pytest.mark.parametrize("name", CONTROLLERS)
@few
@given(values=eigenvalues, cut=st.integers(1, UPDATES - 1))
def test_a_saved_state_has_the_same_future(name, values, cut):
    controller = CONTROLLERS[name]
    whole = drive.host(controller, values, update=JITTED[name])
    samples = int(controller.init().batch_size) + sum(int(s.batch_size) for s in whole[: cut - 1])
    leaves, treedef = jax.tree.flatten(whole[cut - 1])
    restored = jax.tree.unflatten(treedef, [np.asarray(leaf) for leaf in leaves])
    rest = drive.host(controller, values[cut:], update=JITTED[name], state=restored, samples=samples)
    drive.assert_same_bits(rest, whole[cut:])


@pytest.mark.parametrize("name", CONTROLLERS)
def test_an_update_is_traced_once(name):
    traces = []

    def update(observation, state):
        traces.append(None)
        return CONTROLLERS[name].update(observation, state)

    jitted = jax.jit(update)
    drive.host(CONTROLLERS[name], [1.0] * 10, update=jitted)
    assert len(traces) == 1


@pytest.mark.parametrize("name", CONTROLLERS)
def test_the_state_keeps_its_shape_and_types(name):
    state = CONTROLLERS[name].init()
    later = CONTROLLERS[name].update(Observation(10_000, 1.0), state)
    assert jax.tree.structure(state) == jax.tree.structure(later)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    assert describe(state) == describe(later)
    assert (state.batch_size.dtype, state.lr_scale.dtype, state.measure.dtype) == (jnp.int32, jnp.float32, bool)


def test_a_controller_is_two_functions():
    controller = Controller(lambda: None, lambda observation, state: state)
    assert controller.update(Observation(3), None) is None


def test_next_event_skips_the_past():
    assert int(next_event(100, (100, 50))) == NEVER
    assert int(next_event(0, ())) == NEVER
    assert int(next_event(49, (jnp.int32(100), 50))) == 50


@pytest.mark.parametrize("at", [(0,), (5, 5), (9, 3), (NEVER,), (-1,)])
def test_decay_points_must_ascend_from_above_zero(at):
    with pytest.raises(ValueError, match="`lr_decay_at` must be positive"):
        check_decay(at, 0.5)


@pytest.mark.parametrize("factor", [0.0, 1.5, -0.1, float("nan")])
def test_decay_must_lie_in_its_range(factor):
    with pytest.raises(ValueError, match="`lr_decay` must lie in"):
        check_decay((10,), factor)


def test_decay_is_the_exact_product():
    decay = check_decay((10, 20, 30), 0.2)
    got = [float(decay.scale(samples)) for samples in (9, 10, 20, 30)]
    assert got == [np.float32(0.2**k) for k in range(4)]
    assert float(jax.jit(decay.scale)(30)) == got[-1]


@pytest.mark.parametrize(
    ("initial", "maximum", "message"),
    [
        (0, 4, "`initial` must lie"),
        (8, 4, "`initial` must lie"),
        (3, 10, "multiple of initial=3, got 10; .* is 9"),
    ],
)
def test_batch_sizes_must_fit(initial, maximum, message):
    with pytest.raises(ValueError, match=message):
        check_batch_sizes(initial, maximum)
