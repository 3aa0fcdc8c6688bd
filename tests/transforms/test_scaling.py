"""Learning rates that follow the batch."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hessabs
from hessabs.batch_size import Count


def rates(tx, batch_sizes):
    state, out = tx.init(jnp.ones(())), []
    for batch_size in batch_sizes:
        updates, state = tx.update(jnp.ones(()), state, batch_size=batch_size)
        out.append(float(updates))
    return out


def test_at_the_batch_it_was_written_for_it_is_the_schedule():
    schedule = optax.cosine_decay_schedule(1.0, 10)
    plain = optax.scale_by_learning_rate(schedule)
    state, want = plain.init(jnp.ones(())), []
    for _ in range(12):
        updates, state = plain.update(jnp.ones(()), state)
        want.append(float(updates))
    np.testing.assert_allclose(rates(hessabs.by_samples(schedule, 128), [128] * 12), want, rtol=1e-6, atol=1e-7)


def test_when_the_batch_grows_it_keeps_the_pace_of_the_data():
    schedule = optax.piecewise_constant_schedule(1.0, {100: 0.1})
    tx = hessabs.by_samples(schedule, 128, flip_sign=False)
    # 60 updates of 128, 8 of 640: the decay comes with the example and not with the hundredth update.
    out = rates(tx, [128] * 60 + [640] * 12)
    np.testing.assert_allclose(out[:68], 1.0)
    np.testing.assert_allclose(out[68:], 0.1, rtol=1e-6)


def test_parts_of_a_step_are_read_between():
    assert rates(hessabs.by_samples(lambda step: step, 4, flip_sign=False), [1, 2, 3, 4]) == [
        0.0,
        0.25,
        0.75,
        1.5,
    ]


def test_whole_steps_stay_exact_after_many_examples():
    tx = hessabs.by_samples(lambda step: step, 1000, flip_sign=False)
    state = hessabs.transforms.BySamplesState(Count.of(5_000_000_001_500))
    updates, _ = tx.update(jnp.ones(()), state, batch_size=1)
    assert float(updates) == float(np.float32(5_000_000_001) + np.float32(0.5))
    state = hessabs.transforms.BySamplesState(Count.of(2_000_001_500))
    assert float(tx.update(jnp.ones(()), state, num_examples=1)[0]) == 2_000_001.5


def test_refusals():
    with pytest.raises(ValueError, match="`examples_per_step` must be at least 1, got 0"):
        hessabs.by_samples(lambda step: step, 0)
    tx = hessabs.by_samples(lambda step: step, 1)
    with pytest.raises(ValueError, match="by_samples needs `batch_size`"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())))
    tx = hessabs.scale_by_batch_size()
    with pytest.raises(ValueError, match="scale_by_batch_size needs `lr_scale`"):
        tx.update(jnp.ones(()), tx.init(jnp.ones(())))


def test_the_factor_scales_and_can_be_read():
    tx = optax.chain(optax.trace(0.9), hessabs.scale_by_batch_size(), optax.scale_by_learning_rate(0.1))
    state = tx.init(jnp.ones(()))
    updates, state = tx.update(jnp.ones(()), state, lr_scale=4.0)
    assert float(updates) == pytest.approx(-0.4)
    assert float(hessabs.read(state).lr_scale) == 4.0
