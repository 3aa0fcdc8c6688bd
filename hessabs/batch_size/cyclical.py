"""Cyclical batch sizes: annealing by growth, and new noise by falling back."""

from collections.abc import Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import Controller, ControllerState, Observation, num_passed
from hessabs.batch_size.counting import Count, at, counts, divide
from hessabs.batch_size.options import Coupling, check_above_one, check_every, check_options, ladder

Shape = Literal["sawtooth", "triangular"]


def cyclical(
    initial: int,
    maximum: int,
    *,
    cycle: int,
    growth_factor: float = 2.0,
    shape: Shape = "sawtooth",
    lr_coupling: Coupling = "none",
    adversarial_fraction: float = 0.0,
    adversarial_until: int | None = None,
    lr_decay_at: Sequence[int] = (),
    lr_decay: float = 0.2,
) -> Controller:
    """Let the batch grow within each cycle and fall back at its end.

    A cycle has equal parts, one for each batch size ``initial * growth_factor ** j`` up to the maximum, in this
    order; then it begins anew. ``"triangular"`` goes down the same steps again before the cycle ends.

    The exact rule of the paper (first batch, factor, cap) is not known to us: this is a reading of its idea,
    with the cycle counted in examples and the learning rate left alone.

    Args:
      initial: Examples per update at the start of a cycle.
      maximum: The most examples per update. A batch below it is a multiple of ``initial``.
      cycle: Examples in a cycle, at least one for each part.
      growth_factor: From one batch to the next, above 1.
      shape: ``"sawtooth"`` or ``"triangular"``.
      lr_coupling: How the learning rate follows the batch: ``"none"``, ``"sqrt"`` or ``"linear"``.
      adversarial_fraction: Fraction of each batch to replace by adversarial examples, in [0, 1].
      adversarial_until: Examples after which the fraction is 0; None for never.
      lr_decay_at: Examples after which the learning rate is multiplied by ``lr_decay``, ascending.
      lr_decay: Factor of each decay, in (0, 1].

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> controller = cyclical(32, 128, cycle=3000)
      >>> state = controller.init()
      >>> for samples in (1000, 2000, 3000):
      ...     state = controller.update(Observation(samples), state)
      ...     print(int(state.batch_size))
      64
      128
      32

    References:
      Mu et al. (2018), arXiv:1812.01216. Differs from the paper: see above.
    """
    options = check_options(
        initial,
        maximum,
        lr_coupling=lr_coupling,
        lr_decay_at=lr_decay_at,
        lr_decay=lr_decay,
        adversarial_fraction=adversarial_fraction,
        adversarial_until=adversarial_until,
    )
    check_every("cycle", cycle)
    check_above_one("growth_factor", growth_factor)
    if shape not in get_args(Shape):
        raise ValueError(f"`shape` must be one of {list(get_args(Shape))}, got {shape!r}.")
    sizes = ladder(initial, maximum, growth_factor)
    if shape == "triangular":
        sizes += sizes[-2:0:-1]
    if cycle < len(sizes):
        raise ValueError(f"`cycle` must have an example for each of its {len(sizes)} parts, got {cycle}.")
    # Part j begins at ceil(j * cycle / parts) examples of the cycle.
    starts = [-(-part * cycle // len(sizes)) for part in range(len(sizes) + 1)]

    def decide(samples: Count, fraction: jax.Array) -> ControllerState:
        _, within = divide(samples, cycle)
        part = num_passed(within, starts[1:])
        batch_size = jnp.asarray(sizes, jnp.int32)[part]
        next_part = samples - within + at(counts(starts), part + 1)
        return options.decide(samples, batch_size, fraction, events=(next_part,))

    def init() -> ControllerState:
        return decide(Count.of(0), jnp.float32(adversarial_fraction))

    def update(observation: Observation, state: ControllerState) -> ControllerState:
        return decide(Count.of(observation.samples), state.adversarial_fraction)

    return Controller(init, update, "nothing", options.batch_sizes)
