"""Cyclical batch sizes: annealing by growth, and new noise by falling back."""

from typing import Literal, get_args

import jax.numpy as jnp

from hessabs.batch_size.checks import require_sizes
from hessabs.batch_size.controller import Controller
from hessabs.batch_size.counting import Count, at, counts, divide, num_passed
from hessabs.batch_size.rule import Decision, Rate
from hessabs.batch_size.sizes import ladder
from hessabs.batch_size.table import by_examples
from hessabs.checks import require, require_one_of

Shape = Literal["sawtooth", "triangular"]


def cyclical(
    initial: int, maximum: int, *, cycle: int, growth_factor: float = 2.0, shape: Shape = "sawtooth"
) -> Controller:
    """Let the batch grow within each cycle and fall back at its end.

    A cycle has equal parts, one for each batch size ``initial * growth_factor ** j`` up to the maximum, in this
    order; then it begins anew. ``"triangular"`` goes down the same steps again before the cycle ends. The
    learning rate does not follow the batch, see ``with_coupling``.

    Args:
      initial, maximum: As in ``timer``; a cycle begins at ``initial``.
      cycle: Examples in a cycle, at least one for each part.
      growth_factor: From one batch to the next, above 1.
      shape: ``"sawtooth"`` or ``"triangular"``.

    Returns:
      A ``Controller`` that measures nothing.

    Raises:
      ValueError: If a parameter is out of its range.

    Example:
      >>> from hessabs.batch_size import Observation
      >>> controller = cyclical(32, 128, cycle=3000)
      >>> state = controller.init()
      >>> [int(controller.update(Observation(samples), state).batch_size) for samples in (1000, 2000, 3000)]
      [64, 128, 32]

    References:
      Mu et al. (2018), arXiv:1812.01216. Differs from the paper: its exact rule (first batch, factor, cap) is
      not known to us; this is a reading of its idea, with the cycle counted in examples.
    """
    require_sizes(initial, maximum)
    require("be at least 1 example", cycle=cycle)
    require("be above 1", growth_factor=growth_factor)
    require_one_of(get_args(Shape), shape=shape)
    sizes = ladder(initial, maximum, growth_factor)
    if shape == "triangular":
        sizes += sizes[-2:0:-1]
    if cycle < len(sizes):
        raise ValueError(f"`cycle` must have an example for each of its {len(sizes)} parts, got {cycle}.")
    # Part j begins at ceil(j * cycle / parts) examples of the cycle.
    starts = [-(-part * cycle // len(sizes)) for part in range(len(sizes) + 1)]

    def decide(samples: Count, rate: Rate) -> Decision:
        _, within = divide(samples, cycle)
        part = num_passed(within, starts[1:])
        batch_size = jnp.asarray(sizes, jnp.int32)[part]
        next_part = samples - within + at(counts(starts), part + 1)
        return Decision(batch_size, rate.of(batch_size), events=(next_part,), grew=False)

    return by_examples(decide, (initial, maximum), "none")
