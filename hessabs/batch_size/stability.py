"""The largest batch whose learning rate the curvature can bear."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import NEVER, Count, where
from hessabs.batch_size.eigenvalues import hear, is_valid, need_eigenvalue
from hessabs.batch_size.options import (
    Coupling,
    check_above_one,
    check_every,
    check_options,
    ladder,
    next_multiple,
)


class _Memory(NamedTuple):
    limit: jax.Array  # shape (), float32: factor in (0, 1] that keeps the step stable
    measure_at: Count  # examples at the next measurement
    owed: jax.Array  # shape (), bool: whether one that was due has not been told yet


def stability_limited(
    initial: int,
    maximum: int,
    *,
    lr: float,
    measure_every: int,
    threshold: float = 1.25,
    growth_factor: float = 2.0,
    limit_lr: bool = False,
    lr_coupling: Coupling = "linear",
    adversarial_fraction: float = 0.0,
    fraction_decrease: float = 2.0,
    adversarial_until: int | None = None,
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
) -> Controller:
    """Grow the batch as far as the top eigenvalue times the learning rate stays below a threshold.

    Gradient descent on a quadratic is stable while ``eigenvalue * lr < 2``, with momentum m while it is below
    ``2 (1 + m)``. At each measurement the batch grows by as many factors as keep ``eigenvalue * lr`` after the
    growth below the threshold; it never falls. A negative, zero, subnormal or non-finite eigenvalue changes
    nothing. NaN stands for "not measured": a measurement may then be told at any update until the next is due,
    with a state whose ``measure`` is True.

    Args:
      initial: Examples per update at the start.
      maximum: The most examples per update. A batch below it is a multiple of ``initial``.
      lr: The learning rate at the start, which ``state.lr_scale`` multiplies, above 0.
      measure_every: Examples between measurements, at least 1.
      threshold: Bound on eigenvalue times learning rate, above 0. The default was chosen on held-out images
        (``experiments/results/go_beyond``); 2, which leaves momentum 0.9 a margin of 1.9, makes fewer updates
        and less accurate networks.
      growth_factor: One step of growth, above 1.
      limit_lr: Whether the learning rate also shrinks, to ``threshold / eigenvalue``, where the eigenvalue has
        risen above that; it recovers with the eigenvalue. Measurements then go on at the maximum.
      lr_coupling: How the learning rate follows the batch: ``"linear"``, ``"sqrt"`` or ``"none"`` (the batch
        then goes to the maximum as soon as the rate is stable).
      adversarial_fraction: Fraction of each batch to replace by adversarial examples, in [0, 1].
      fraction_decrease: Divides the fraction at each growth, at least 1, however many factors it takes at once;
        the fraction is 0 at the maximum, except with 1, which leaves it alone.
      adversarial_until: Examples after which the fraction is 0; None for never.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].

    Returns:
      A ``Controller`` that measures the top eigenvalue.

    Raises:
      ValueError: If a parameter is out of its range; from ``update``, if the observation has no eigenvalue.

    Example:
      >>> controller = stability_limited(128, 4096, lr=0.1, measure_every=1000)
      >>> state = controller.update(Observation(1000, 4.0), controller.init())
      >>> int(state.batch_size), float(state.lr_scale)  # 4.0 * 0.1 * 2 = 0.8; 4 would give 1.6
      (256, 2.0)

    References:
      The bound: Cohen et al. (2021), arXiv:2103.00065. The rule is this library's own.
    """
    options = check_options(
        initial,
        maximum,
        lr_coupling=lr_coupling,
        lr_decay_at=lr_decay_at,
        lr_decay=lr_decay,
        adversarial_fraction=adversarial_fraction,
        fraction_decrease=fraction_decrease,
        adversarial_until=adversarial_until,
    )
    for name, value in (("lr", lr), ("threshold", threshold)):
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` must be above 0, got {value}.")
    check_every("measure_every", measure_every)
    check_above_one("growth_factor", growth_factor)
    sizes = ladder(initial, maximum, growth_factor)

    def decide(samples: Count, batch_size: jax.Array, fraction: jax.Array, memory: _Memory) -> ControllerState:
        measuring = limit_lr | (batch_size < maximum)
        measure_at = where(measuring, memory.measure_at, NEVER)
        return options.decide(
            samples, batch_size, fraction, memory, lr_scale=memory.limit, measure_at=measure_at
        )

    def init() -> ControllerState:
        memory = _Memory(jnp.ones((), jnp.float32), Count.of(measure_every), jnp.zeros((), bool))
        return decide(Count.of(0), jnp.asarray(initial, jnp.int32), jnp.float32(adversarial_fraction), memory)

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        memory: _Memory = state.rule
        samples = Count.of(observation.samples)
        eigenvalue = need_eigenvalue(observation, "stability_limited")
        due, told, owed = hear(state, samples, eigenvalue, memory.measure_at, memory.owed)
        valid = told & is_valid(eigenvalue)

        steps = jnp.asarray(sizes, jnp.int32)
        decayed = eigenvalue * (lr * options.decay.scale(samples))
        stable = decayed * options.coupled(steps) < threshold
        largest = jnp.max(jnp.where(stable, steps, 0))
        batch_size = jnp.where(valid, jnp.maximum(largest, state.batch_size), state.batch_size)

        limit = memory.limit
        if limit_lr:
            sharpness = decayed * options.coupled(batch_size)
            limit = jnp.where(valid, jnp.minimum(threshold / jnp.where(valid, sharpness, 1.0), 1.0), limit)
        memory = _Memory(limit, where(due, next_multiple(samples, measure_every), memory.measure_at), owed)
        return decide(samples, batch_size, options.shrunk(state, batch_size), memory)

    return Controller(init, update, batch_sizes=options.batch_sizes)
