"""What a rule has decided is found wherever it stands."""

import jax
import jax.numpy as jnp
import optax
import pytest

import hessabs
from hessabs.batch_size import GradientStatistics
from tests.transforms.cases import make_params

pytestmark = pytest.mark.sampled


def rule():
    return hessabs.batch_size.with_adversarial(hessabs.batch_size.timer(32, 128, every=32), 0.5)


def adaptive():
    return hessabs.adaptive_batch_size(rule())


PLACES = {
    "alone": adaptive,
    "chain": lambda: optax.chain(optax.scale_by_adam(), adaptive(), optax.sgd(0.1)),
    "accumulate": lambda: hessabs.accumulate(optax.chain(adaptive(), optax.sgd(0.1)), micro_batch_size=32),
    "by_samples": lambda: optax.chain(adaptive(), hessabs.by_samples(lambda step: 0.1, 32)),
    "scale_by_batch_size": lambda: optax.chain(hessabs.scale_by_batch_size(), adaptive()),
    "inject_hyperparams": lambda: optax.chain(
        optax.inject_hyperparams(hessabs.adaptive_batch_size, static_args=("controller",))(controller=rule()),
        optax.inject_hyperparams(optax.sgd)(0.1),
    ),
    "partition": lambda: optax.partition(
        {"train": optax.chain(adaptive(), optax.sgd(0.1)), "freeze": optax.set_to_zero()},
        {"w": "train", "b": "freeze"},
    ),
    "masked": lambda: optax.masked(adaptive(), {"w": True, "b": False}),
    "apply_if_finite": lambda: optax.apply_if_finite(adaptive(), 3),
    "schedule_free": lambda: optax.contrib.schedule_free(optax.chain(adaptive(), optax.sgd(0.1)), 0.1),
}


@pytest.mark.parametrize("place", PLACES)
def test_it_is_found_in(place):
    tx = optax.with_extra_args_support(PLACES[place]())
    params = make_params()
    state = tx.init(params)
    assert int(hessabs.read(state).batch_size) == 32
    _, state = tx.update(params, state, params, batch_size=32, lr_scale=7.0)
    reading = hessabs.read(state)
    assert (int(reading.samples), int(reading.batch_size), float(reading.lr_scale)) == (32, 64, 2.0)
    assert (float(reading.adversarial_fraction), int(reading.observe_at)) == (0.25, 64)
    assert not bool(reading.measurement_due)
    assert reading.noise_scale is None


def test_the_noise_scale_and_the_progress_of_adascale_are_read():
    scaled = hessabs.batch_size.adascale(64, base_batch_size=16, measure_every=64, average_over=1)
    tx = optax.chain(hessabs.adaptive_batch_size(scaled), hessabs.by_samples(lambda step: 0.1, 16))
    state = tx.init(jnp.ones(()))
    assert jnp.isnan(hessabs.read(state).noise_scale)
    statistics = GradientStatistics(32, 2, mean_square=2.0, square_mean=1.5)
    _, state = tx.update(jnp.ones(()), state, gradient_statistics=statistics, batch_size=64)
    reading = hessabs.read(state)
    assert float(reading.noise_scale) == 32 * 1.0 / (1.5 - 0.5)  # tr(Sigma) / |G|^2, by the formulae
    assert (int(reading.samples), int(reading.controller.rule.progress)) == (64, 16)


def test_it_may_be_read_in_jitted_code():
    tx = PLACES["chain"]()
    state = tx.init(make_params())
    assert int(jax.jit(lambda state: hessabs.read(state).samples + 1)(state)) == 1


def test_without_a_rule_inside_what_there_is_is_read():
    tx = optax.chain(hessabs.scale_by_batch_size(), hessabs.by_samples(lambda step: 0.1, 16))
    _, state = tx.update(jnp.ones(()), tx.init(jnp.ones(())), lr_scale=2.0, batch_size=48)
    reading = hessabs.read(state)
    assert (int(reading.samples), float(reading.lr_scale), reading.batch_size) == (48, 2.0, None)
    with pytest.raises(ValueError, match="no adaptive_batch_size in it, whose rule could want one"):
        hessabs.measurement_due(state)


def test_nothing_to_read_and_two_of_a_kind_are_refused():
    params = make_params()
    with pytest.raises(
        ValueError, match=r"has no adaptive_batch_size, .* it is \(ScaleByAdamState, EmptyState\)"
    ):
        hessabs.read(optax.adam(0.1).init(params))
    with pytest.raises(ValueError, match="has 2 adaptive_batch_size in it"):
        hessabs.read(optax.chain(adaptive(), adaptive()).init(params))


class Sealed:
    """A part of a state that fails when it is read or flattened."""

    def __getattribute__(self, name):
        assert name == "__class__", f"`{name}` was read"
        return object.__getattribute__(self, name)


def fail_to_flatten(sealed):
    raise AssertionError("the state was flattened")


jax.tree_util.register_pytree_node(Sealed, fail_to_flatten, lambda aux, children: Sealed())


def test_reading_neither_flattens_the_state_nor_touches_its_arrays_nor_copies():
    adam, held, rest = optax.chain(optax.scale_by_adam(), adaptive(), optax.sgd(0.1)).init(make_params())
    state = (adam._replace(count=Sealed(), mu={"w": Sealed()}, nu=[Sealed()]), held, rest)
    with pytest.raises(AssertionError, match="was flattened"):
        jax.tree.leaves(state)
    reading = hessabs.read(state)
    assert reading.samples is held.samples
    assert reading.batch_size is held.controller.batch_size
