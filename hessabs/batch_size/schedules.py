"""Rules that need no measurement."""

from collections.abc import Sequence

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


def constant(
    batch_size: int,
    *,
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
    adversarial_fraction: float = 0.0,
    adversarial_until: int | None = None,
) -> Controller:
    """Keep one batch size: the baseline (BL) of the slides.

    The learning rate is not scaled with the batch; it decays by steps.

    Args:
      batch_size: Examples per update, at least 1.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].
      adversarial_fraction: Fraction of each batch to replace by adversarial examples, in [0, 1]; 0 in the
        slides.
      adversarial_until: Examples after which the fraction is 0; None for never.

    Returns:
      A ``Controller``.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> controller = constant(128, lr_decay_at=(1000,), lr_decay=0.5)
      >>> state = controller.update(Observation(1000), controller.init())
      >>> int(state.batch_size), float(state.lr_scale)
      (128, 0.5)

    References:
      Yao et al. (2018), arXiv:1810.01021, baseline of section 4.
    """
    check_batch_sizes(batch_size, batch_size)
    decay = check_decay(lr_decay_at, lr_decay)
    check_fraction("adversarial_fraction", adversarial_fraction)
    until = NEVER if adversarial_until is None else adversarial_until

    def decide(samples: object) -> ControllerState:
        samples = jnp.asarray(samples, jnp.int32)
        return ControllerState(
            batch_size=jnp.asarray(batch_size, jnp.int32),
            lr_scale=decay.scale(samples),
            adversarial_fraction=jnp.where(samples < until, adversarial_fraction, 0.0).astype(jnp.float32),
            observe_at=next_event(samples, (*decay.at, until)),
            measure=jnp.zeros((), bool),
            rule=(),
        )

    def init() -> ControllerState:
        return decide(0)

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        del state
        return decide(observation.samples)

    return Controller(init, update)


def check_fraction(name: str, fraction: float) -> None:
    """Check a fraction of a batch.

    Args:
      name: Name of the parameter, for the message.
      fraction: Its value.

    Raises:
      ValueError: If it lies outside [0, 1].
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"`{name}` must lie in [0, 1], got {fraction}.")
