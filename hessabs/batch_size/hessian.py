"""ABS and ABSA: the batch grows where the top Hessian eigenvalue falls."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import (
    NEVER,
    Controller,
    ControllerState,
    Observation,
    check_batch_sizes,
    check_decay,
    next_event,
)
from hessabs.batch_size.schedules import check_fraction


class _Memory(NamedTuple):
    reference: jax.Array  # shape (), float32: the eigenvalue that the next one is held against; 0 before the first
    since_growth: jax.Array  # shape (), int32: measurements since the batch grew
    measure_at: jax.Array  # shape (), int32: examples at the next measurement


def hessian_adaptive(
    initial: int,
    maximum: int,
    *,
    measure_every: int,
    eigenvalue_decrease: float = 2.0,
    growth_factor: float = 2.0,
    patience: int | None = 10,
    adversarial_fraction: float = 0.0,
    fraction_decrease: float = 2.0,
    adversarial_until: int | None = None,
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
) -> Controller:
    """Grow the batch when the top Hessian eigenvalue falls (ABS), with adversarial examples (ABSA).

    At each measurement: if ``eigenvalue <= reference / eigenvalue_decrease``, or the batch has not grown for
    ``patience`` measurements, then the batch and the learning rate grow by ``growth_factor`` and the
    adversarial fraction shrinks by ``fraction_decrease``. The reference is the eigenvalue that last caused
    growth, at first the first one measured. At the maximum, adversarial examples and measurements end.

    A negative, zero or non-finite eigenvalue never grows the batch, is never the reference, and does not let
    the patience end; the measurement after it may.

    Args:
      initial: Examples per update at the start (B0).
      maximum: The most examples per update, a multiple of ``initial``.
      measure_every: Examples between measurements (n). The published code measures once an epoch.
      eigenvalue_decrease: The fall that counts (alpha), above 1.
      growth_factor: Growth of the batch (beta), above 1. The batch stays a multiple of ``initial``.
      patience: Measurements without growth after which the batch grows anyway (kappa), or None for never.
      adversarial_fraction: Fraction of each batch to replace by adversarial examples (gamma): 0 is ABS, 0.2
        the ABSA of the paper. (The size epsilon of the perturbation belongs to the attack.)
      fraction_decrease: Divides the fraction at each growth (omega), at least 1.
      adversarial_until: Examples after which the fraction is 0 (tau); None for never. In the paper, half of
        the training.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].

    Returns:
      A ``Controller``. ``state.measure`` says when ``Observation.eigenvalue`` must be fresh.

    Raises:
      ValueError: If a parameter is out of its range; from ``update``, if the observation has no eigenvalue.

    Example:
      >>> controller = hessian_adaptive(128, 512, measure_every=1000)
      >>> state = controller.init()
      >>> for samples, eigenvalue in ((1000, 8.0), (2000, 5.0), (3000, 4.0)):
      ...     state = controller.update(Observation(samples, eigenvalue), state)
      >>> int(state.batch_size), float(state.lr_scale)
      (256, 2.0)

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1. Differs from the published code: measurements are
      counted in examples, and invalid eigenvalues (above) are guarded against.
    """
    check_batch_sizes(initial, maximum)
    decay = check_decay(lr_decay_at, lr_decay)
    check_fraction("adversarial_fraction", adversarial_fraction)
    if not 1 <= measure_every < NEVER:
        raise ValueError(f"`measure_every` must be at least 1 example, got {measure_every}.")
    for name, value in (("eigenvalue_decrease", eigenvalue_decrease), ("growth_factor", growth_factor)):
        if not 1 < value < float("inf"):
            raise ValueError(f"`{name}` must be above 1, got {value}.")
    if not 1 <= fraction_decrease < float("inf"):
        raise ValueError(f"`fraction_decrease` must be at least 1, got {fraction_decrease}.")
    if patience is not None and patience < 1:
        raise ValueError(f"`patience` must be at least 1 measurement, or None, got {patience}.")
    until = NEVER if adversarial_until is None else adversarial_until
    if until < 0:
        raise ValueError(f"`adversarial_until` must be at least 0 examples, got {until}.")
    most_measurements = NEVER if patience is None else patience

    def decide(
        samples: jax.Array, batch_size: jax.Array, fraction: jax.Array, memory: _Memory
    ) -> ControllerState:
        growing = batch_size < maximum
        measure_at = jnp.where(growing, memory.measure_at, NEVER)
        observe_at = next_event(samples, (*decay.at, until, measure_at))
        return ControllerState(
            batch_size=batch_size.astype(jnp.int32),
            lr_scale=(batch_size / initial).astype(jnp.float32) * decay.scale(samples),
            adversarial_fraction=jnp.where(samples < until, fraction, 0.0).astype(jnp.float32),
            observe_at=observe_at,
            measure=growing & (observe_at == measure_at),
            rule=memory,
        )

    def init() -> ControllerState:
        memory = _Memory(jnp.zeros(()), jnp.zeros((), jnp.int32), jnp.asarray(measure_every, jnp.int32))
        zero = jnp.zeros((), jnp.int32)
        return decide(zero, jnp.asarray(initial, jnp.int32), jnp.float32(adversarial_fraction), memory)

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        if observation.eigenvalue is None:
            raise ValueError(
                "The observation has no `eigenvalue`, which hessian_adaptive needs; "
                "where none is due (state.measure is False) pass float('nan')."
            )
        samples = jnp.asarray(observation.samples, jnp.int32)
        eigenvalue = jnp.asarray(observation.eigenvalue, jnp.float32)
        memory: _Memory = state.rule
        measured = state.measure & (samples >= memory.measure_at)
        valid = measured & jnp.isfinite(eigenvalue) & (eigenvalue > 0)
        first = memory.reference <= 0
        since_growth = memory.since_growth + measured
        fell = valid & ~first & (eigenvalue <= memory.reference / eigenvalue_decrease)
        grow = fell | (valid & (since_growth >= most_measurements))

        factor = state.batch_size // initial
        grown = jnp.maximum(factor + 1, jnp.floor(factor * growth_factor).astype(jnp.int32))
        batch_size = jnp.where(grow, jnp.minimum(grown, maximum // initial) * initial, state.batch_size)
        fraction = jnp.where(grow, state.adversarial_fraction / fraction_decrease, state.adversarial_fraction)
        fraction = jnp.where(grow & (batch_size >= maximum), 0.0, fraction)
        memory = _Memory(
            reference=jnp.where(fell | (valid & first), eigenvalue, memory.reference),
            since_growth=jnp.where(grow, 0, since_growth),
            measure_at=jnp.where(
                measured, (samples // measure_every + 1) * measure_every, memory.measure_at
            ).astype(jnp.int32),
        )
        return decide(samples, batch_size, fraction, memory)

    return Controller(init, update)
