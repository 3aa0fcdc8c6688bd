"""The largest batch whose learning rate the curvature can bear."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hessabs.batch_size.checks import require_sizes
from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import NEVER, Count, where
from hessabs.batch_size.rule import Decision, Rate, Rule, make_controller
from hessabs.batch_size.sizes import ladder
from hessabs.batch_size.statistics import hear, is_valid
from hessabs.checks import require


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
) -> Controller:
    """Grow the batch as far as the top eigenvalue times the learning rate stays below a threshold.

    Gradient descent on a quadratic is stable while ``eigenvalue * lr < 2``, with momentum m while it is below
    ``2 (1 + m)``. At each measurement the batch grows by as many factors as keep ``eigenvalue * lr`` after the
    growth below the threshold; it never falls. The learning rate is that of the next update: with the decays
    around this rule, ``Observation.lr_scale``, and the coupling (``with_coupling(rule, "none")`` goes to the
    maximum as soon as the rate is stable).

    A network that is hardly trained is often flat, which would let the batch grow to the maximum at once: let
    the first measurement come after an epoch or more. A negative, zero, subnormal or non-finite eigenvalue
    changes nothing; NaN is as in ``hessian_adaptive``.

    Args:
      initial, maximum: As in ``timer``.
      lr: The learning rate at the start, which ``state.lr_scale`` multiplies, above 0.
      measure_every: Examples between measurements, at least 1.
      threshold: Bound on eigenvalue times learning rate, above 0. The default was chosen on held-out images
        (``experiments/results/go_beyond``); 2 makes fewer updates and less accurate networks.
      growth_factor: One step of growth, above 1.
      limit_lr: Whether the learning rate also shrinks, to ``threshold / eigenvalue``, where the eigenvalue has
        risen above that; it recovers with the eigenvalue. Measurements then go on at the maximum.

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
    require_sizes(initial, maximum)
    require("be positive and finite", lr=lr, threshold=threshold)
    require("be at least 1 example", measure_every=measure_every)
    require("be above 1", growth_factor=growth_factor)
    sizes = ladder(initial, maximum, growth_factor)

    def decide(batch_size: jax.Array, memory: _Memory, rate: Rate) -> Decision:
        measuring = limit_lr | (batch_size < maximum)
        scale = rate.of(batch_size) * memory.limit
        return Decision(batch_size, scale, memory, measure_at=where(measuring, memory.measure_at, NEVER))

    def init(rate: Rate) -> Decision:
        memory = _Memory(jnp.ones((), jnp.float32), Count.of(measure_every), jnp.zeros((), bool))
        return decide(jnp.int32(initial), memory, rate)

    def update(observation: Observation, state: ControllerState, rate: Rate) -> Decision:
        memory: _Memory = state.rule
        eigenvalue, _, told, later = hear(observation, state, measure_every, "stability_limited")
        valid = told & is_valid(eigenvalue)

        steps = jnp.asarray(sizes, jnp.int32)
        decayed = eigenvalue * (lr * rate.schedule)
        stable = decayed * rate.of(steps) < threshold
        largest = jnp.max(jnp.where(stable, steps, 0))
        batch_size = jnp.where(valid, jnp.maximum(largest, state.batch_size), state.batch_size)

        limit = memory.limit
        if limit_lr:
            sharpness = decayed * rate.of(batch_size)
            limit = jnp.where(valid, jnp.minimum(threshold / jnp.where(valid, sharpness, 1.0), 1.0), limit)
        return decide(batch_size, _Memory(limit, **later), rate)

    return make_controller(Rule(init, update, (initial, maximum), "eigenvalue"))
