"""The controller protocol: a pure state machine that decides how the next updates are made.

A controller decides three things together: the batch size, the factor on the learning rate (growth AND decay)
and the fraction of adversarial examples. It counts in examples, so nothing drifts when the batch grows, and it
says when it wants to be told and whether it wants a measurement then::

    state = controller.init()
    while training:
        ...  # updates of state.batch_size examples, with learning rate lr * state.lr_scale
        if samples >= state.observe_at:
            eigenvalue = measure() if state.measure else float("nan")
            state = controller.update(Observation(samples, eigenvalue), state)

Counts of examples go up to 2**60: ``samples`` may be any Python int. In jitted code it is a ``Count``, or an
int32 where that suffices, for JAX cuts larger integers down without a word.

``controller.measures`` says what a measurement is: a top eigenvalue of the Hessian, of the whole network or of
its last layer, or the gradient statistics of the update just made. A decision holds for whole updates: no
update mixes two batch sizes.

A rule of your own is a ``Controller`` of two functions, or a ``Rule`` for ``make_controller``, which puts the
decays of the learning rate, its coupling to the batch and the adversarial examples around it.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.typing import ArrayLike

from hessabs.batch_size.counting import Count

Measurement = Literal["nothing", "eigenvalue", "last_layer_eigenvalue", "gradient"]
"""What a rule asks for: the field of the observation, and for an eigenvalue the block of the Hessian."""


class GradientStatistics(NamedTuple):
    """What the gradients of equal parts of one batch (micro-batches, devices) say about their noise.

    With part gradients g_1 .. g_k of ``part_size`` examples each and g their mean. A rule that reads them can
    do nothing where k is 1.
    """

    part_size: ArrayLike  # shape (), int32: examples in each part
    num_parts: ArrayLike  # shape (), int32: k
    mean_square: ArrayLike  # shape (), float32: the mean of ||g_i||^2
    square_mean: ArrayLike  # shape (), float32: ||g||^2
    inner_square: ArrayLike | None = None  # shape (), float32: the mean of (g_i . g)^2, where known


class Observation(NamedTuple):
    """What a controller is told."""

    samples: Count | ArrayLike  # examples trained on so far: a count, a Python int or an int32 scalar
    eigenvalue: ArrayLike | None = None  # shape (), float32: top Hessian eigenvalue, fresh if asked for; or NaN
    standard_error: ArrayLike | None = None  # shape (), float32: of an eigenvalue averaged over batches
    gradient: GradientStatistics | None = None  # of the last update, fresh if asked for
    lr_scale: ArrayLike = 1.0  # shape (), float32: factor of a schedule outside the rule at the next update


class ControllerState(NamedTuple):
    """What a controller decided, and what it wants to be told next."""

    batch_size: jax.Array  # shape (), int32: examples per update
    lr_scale: jax.Array  # shape (), float32: the learning rate is lr * lr_scale
    adversarial_fraction: jax.Array  # shape (), float32: fraction of each batch to replace
    observe_at: Count  # call update once this many examples have been trained on; NEVER for never
    measure: jax.Array  # shape (), bool: whether that call must carry a fresh measurement
    rule: Any  # what the rule itself remembers, a pytree of arrays


class Controller(NamedTuple):
    """A rule for the batch size: two pure functions, usable under jit and scan and from a Python loop."""

    init: Callable[[], ControllerState]
    update: Callable[[Observation, ControllerState], ControllerState]
    measures: Measurement = "eigenvalue"  # what `state.measure` asks for; static
    batch_sizes: tuple[int, int] | None = None  # the smallest and the largest that it decides for; static
    options: Any = None  # of `make_controller`: what `with_decay` and its kin change; static
