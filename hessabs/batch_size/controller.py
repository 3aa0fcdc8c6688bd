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

``controller.measures`` says what a measurement is. A decision holds for whole updates: no update mixes two
batch sizes. A rule of your own is a ``Controller`` of two functions, or a ``Rule`` for ``make_controller``.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hessabs import trees
from hessabs.batch_size.counting import Count

Measurement = Literal["nothing", "eigenvalue", "last_layer_eigenvalue", "gradient"]
"""What a rule asks for: the field of the observation, and for an eigenvalue the block of the Hessian."""


class GradientStatistics(NamedTuple):
    """The noise in the gradients g_1 .. g_k, of mean g, of equal parts of a batch (micro-batches, devices)."""

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


def restore(controller: Controller, state: Any) -> ControllerState:
    """Check that a saved state belongs to a rule, and make it one of its states.

    Compared are the structure, the dtypes and the range of the batch size. Two rules that remember the same
    (``timer``, ``fixed_growth``) are not told apart within it: whoever saves a state saves the settings of its
    rule too, and compares them.

    Args:
      controller: The rule that is to go on.
      state: A pytree like its states, with arrays of any kind for leaves.

    Returns:
      The state, of JAX arrays.

    Raises:
      ValueError: If the state is that of another rule: showing the first field that differs.

    Example:
      >>> from hessabs.batch_size import constant, hessian_adaptive
      >>> restore(constant(8), hessian_adaptive(8, 16, measure_every=9).init())  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      ValueError: ... not one of this rule: at .rule.reference it has float32[] and the rule has nothing.
    """
    want = controller.init()
    saved, known = trees.by_path(state), trees.by_path(want)
    for path in [*known, *saved]:
        left, right = trees.describe(saved.get(path)), trees.describe(known.get(path))
        if left != right:
            raise ValueError(
                f"The saved state is not one of this rule: at {path} it has {left} and the rule has {right}."
            )
    size, range_ = int(saved[".batch_size"]), controller.batch_sizes
    if range_ is not None and not range_[0] <= size <= range_[1]:
        raise ValueError(
            f"The saved state is not one of this rule: its batch size is {size} and the rule's go from "
            f"{range_[0]} to {range_[1]}."
        )
    return jax.tree.unflatten(jax.tree.structure(want), [jnp.asarray(saved[path]) for path in known])
