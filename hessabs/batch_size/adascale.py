"""AdaScale: a large batch whose learning rate is scaled by what the batch gains."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hessabs.batch_size.checks import require_sizes
from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import Count, next_multiple, where
from hessabs.batch_size.noise import NoiseMemory
from hessabs.batch_size.rule import Decision, Rate, Rule, make_controller
from hessabs.batch_size.sizes import rounded
from hessabs.batch_size.statistics import need_gradient, noise_and_signal
from hessabs.checks import require


class _Memory(NamedTuple):
    average: NoiseMemory
    gain: jax.Array  # shape (), float32: in [1, batch_size / base_batch_size]
    progress: Count  # examples of the base batch that the updates so far are worth
    samples: Count  # examples at the last call
    measure_at: Count  # examples at the next measurement


def adascale(batch_size: int, *, base_batch_size: int, measure_every: int, average_over: int = 8) -> Controller:
    """Keep one large batch and scale the learning rate by the gain that its gradient's noise allows.

    With ``S = batch_size / base_batch_size``, the variance ``sigma^2`` of the gradient of a base batch and the
    square ``mu^2`` of the true gradient, the gain is ``r = (sigma^2 + mu^2) / (sigma^2 / S + mu^2)``, from 1
    (no noise: a larger batch is worth nothing) to S (all noise). One update counts for r updates of the base
    batch; the points of ``with_decay`` are counted in these, so training takes as long as the noise makes it.

    Args:
      batch_size: Examples per update, at least two parts, a multiple of ``base_batch_size``.
      base_batch_size: The batch that the learning rate and the decays were chosen for, at least 1.
      measure_every: Examples between observations, at least 1. The paper observes every update.
      average_over: Observations that the running means cover, a power of two.

    Returns:
      A ``Controller`` that measures ``"gradient"``. ``state.rule.progress`` is the progress in examples of the
      base batch: train until it, and not the true count, reaches the planned one.

    Raises:
      ValueError: If a parameter is out of its range; from ``update``, if the observation has no gradient.

    Example:
      >>> from hessabs.batch_size import GradientStatistics
      >>> controller = adascale(512, base_batch_size=128, measure_every=512, average_over=1)
      >>> statistics = GradientStatistics(256, 2, mean_square=2.0, square_mean=1.5)  # sigma^2 = 2, mu^2 = 1
      >>> state = controller.update(Observation(512, gradient=statistics), controller.init())
      >>> float(state.lr_scale)  # (2 + 1) / (2 / 4 + 1)
      2.0

    References:
      Johnson et al. (2020), AdaScale SGD, arXiv:2007.05105.
    """
    require_sizes(batch_size, batch_size)
    if not 1 <= base_batch_size <= batch_size or batch_size % base_batch_size:
        raise ValueError(f"`base_batch_size` must divide batch_size={batch_size}, got {base_batch_size}.")
    require("be at least 1 example", measure_every=measure_every)
    require("be a power of two observations", average_over=average_over)
    scale = batch_size // base_batch_size

    def decide(memory: _Memory) -> Decision:
        size, when = jnp.int32(batch_size), memory.measure_at
        return Decision(size, memory.gain, memory, measure_at=when, progress=memory.progress)

    def init(rate: Rate) -> Decision:
        del rate
        gain, first = jnp.ones((), jnp.float32), Count.of(measure_every)
        return decide(_Memory(NoiseMemory.empty(), gain, Count.of(0), Count.of(0), first))

    def update(observation: Observation, state: ControllerState, rate: Rate) -> Decision:
        del rate
        memory: _Memory = state.rule
        samples = Count.of(observation.samples)
        measured = state.measure & (samples >= memory.measure_at)
        noise, signal = noise_and_signal(need_gradient(observation, "adascale"))
        valid = measured & jnp.isfinite(noise) & jnp.isfinite(signal)
        average = memory.average.add(noise, signal, valid, average_over)

        # The updates since the last call were made with the old gain.
        worth = (samples - memory.samples).to_float() * memory.gain * (1 / scale)
        progress = memory.progress + Count.from_float(worth)
        sigma2 = rounded(average.noise, 1 / base_batch_size)
        mu2 = jnp.maximum(average.signal, 0.0)
        below = rounded(sigma2, 1 / scale) + mu2
        usable = valid & (below >= jnp.finfo(jnp.float32).tiny)
        gain = jnp.where(usable, (sigma2 + mu2) / jnp.where(usable, below, 1.0), memory.gain)
        gain = jnp.clip(gain, 1.0, float(scale))
        measure_at = where(measured, next_multiple(samples, measure_every), memory.measure_at)
        return decide(_Memory(average, gain, progress, samples, measure_at))

    return make_controller(Rule(init, update, (batch_size, batch_size), "gradient"))
