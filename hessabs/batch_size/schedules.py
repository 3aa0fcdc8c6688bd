"""Rules that keep one batch size: the baseline and the linear scaling rule."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import Controller, ControllerState, Observation, check_batch_sizes
from hessabs.batch_size.counting import NEVER, Count
from hessabs.batch_size.options import Coupling, check_options
from hessabs.batch_size.table import each_update, schedule, straight


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
    return schedule(
        (batch_size,),
        (),
        lr_decay_at=lr_decay_at,
        lr_decay=lr_decay,
        adversarial_fraction=adversarial_fraction,
        adversarial_until=adversarial_until,
    )


def linear_scaling(
    batch_size: int,
    *,
    base_batch_size: int,
    warmup: int,
    lr_coupling: Coupling = "linear",
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
    adversarial_fraction: float = 0.0,
    adversarial_until: int | None = None,
) -> Controller:
    """Keep one large batch and scale the learning rate with it, after a gradual warm-up (FB).

    From the learning rate of the base batch the rate rises by the same amount at each update, to
    ``batch_size / base_batch_size`` times that rate after ``warmup`` examples: the factor is
    ``1 + (batch_size / base_batch_size - 1) * min(samples / warmup, 1)``, times the decays.

    Args:
      batch_size: Examples per update, at least 1.
      base_batch_size: The batch that the learning rate was chosen for, at least 1.
      warmup: Examples over which the rate rises, at least 0. In the paper, 5 epochs.
      lr_coupling: ``"linear"`` (the paper), ``"sqrt"``: the rate rises to the square root of the ratio, or
        ``"none"``: the baseline.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].
      adversarial_fraction: Fraction of each batch to replace by adversarial examples, in [0, 1].
      adversarial_until: Examples after which the fraction is 0; None for never.

    Returns:
      A ``Controller``. During the warm-up it wants to be called at every update.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> controller = linear_scaling(512, base_batch_size=128, warmup=1024)
      >>> state, scales = controller.init(), []
      >>> for samples in (512, 1024, 1536):
      ...     scales.append(float(state.lr_scale))
      ...     state = controller.update(Observation(samples), state)
      >>> scales
      [1.0, 2.5, 4.0]

    References:
      Goyal et al. (2017), arXiv:1706.02677, sections 2.1 and 2.2.
    """
    options = check_options(
        batch_size,
        batch_size,
        lr_coupling=lr_coupling,
        lr_decay_at=lr_decay_at,
        lr_decay=lr_decay,
        adversarial_fraction=adversarial_fraction,
        adversarial_until=adversarial_until,
    )
    if base_batch_size < 1:
        raise ValueError(f"`base_batch_size` must be at least 1, got {base_batch_size}.")
    if not 0 <= warmup < NEVER:
        raise ValueError(f"`warmup` must be at least 0 examples, got {warmup}.")
    ratio = batch_size / base_batch_size
    target = {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[lr_coupling]

    def decide(samples: Count, fraction: jax.Array) -> ControllerState:
        scale = straight(samples, 0, warmup, target)
        batch = jnp.asarray(batch_size, jnp.int32)
        events = (each_update(samples, 0, warmup),)
        return options.decide(samples, batch, fraction, lr_scale=scale, events=events)

    def init() -> ControllerState:
        return decide(Count.of(0), jnp.float32(adversarial_fraction))

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        return decide(Count.of(observation.samples), state.adversarial_fraction)

    return Controller(init, update, "nothing", options.batch_sizes)
