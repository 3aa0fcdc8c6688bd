"""What one attack did to one batch, example by example, and the numbers that sum it up."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import losses, norms
from hessabs.attacks.inputs import get_inputs
from hessabs.attacks.norms import Bounds, Norm
from hessabs.typing import Attack, LossFn, Params

_SLACK = 1e-5  # by which part of epsilon rounding may take a perturbation out of its ball


class Outcome(NamedTuple):
    """What an attack did to n examples."""

    stands: np.ndarray  # (n,), bool: classified rightly, or outside the bounds, after the attack
    sizes: np.ndarray  # (n,), float: the norm of each perturbation
    seconds: float  # wall clock of the attack


class Evaluation(NamedTuple):
    """What one attack does at one epsilon; "worst case" is the worst of all attacks for each example."""

    attack: str
    epsilon: float
    accuracy: float  # part of the examples that are classified rightly, in [0, 1]
    mean_relative: float  # ||x' - x|| / ||x||, mean over those that fell and were right before; 0 if none
    max_relative: float  # the largest of them
    seconds_per_image: float  # wall clock of the attack, compilation included unless it was compiled before
    withstood: np.ndarray  # (n,), bool: which examples are classified rightly


def run(
    attack: Attack,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    key: jax.Array | None,
    *,
    norm: Norm,
    bounds: Bounds,
    inputs_key: str | int,
    source: tuple[LossFn, Params] | None = None,
) -> tuple[Outcome, Any]:
    """Attack a batch and look what has become of it.

    Args:
      attack: The attack.
      loss_fn: A loss that carries its logits: the network that judges.
      params: Its params.
      batch: n examples.
      key: Random key, or None.
      norm: In which perturbations are measured.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Where the inputs are.
      source: Another (loss, params) to make the examples on, or None for the same.

    Returns:
      ``(outcome, attacked batch)``.
    """
    start = time.perf_counter()
    attacked = jax.block_until_ready(attack(*(source or (loss_fn, params)), batch, key))
    seconds = time.perf_counter() - start
    points = np.asarray(get_inputs(attacked, inputs_key))
    stands = right(loss_fn, params, attacked, inputs_key)
    if bounds is not None:
        flat = points.reshape(len(points), -1)
        low, high = np.asarray(bounds, flat.dtype)
        stands = stands | (flat < low).any(axis=1) | (flat > high).any(axis=1)
    return Outcome(stands, sizes(points - np.asarray(get_inputs(batch, inputs_key)), norm), seconds), attacked


def right(loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int) -> np.ndarray:
    """Tell which examples are classified rightly.

    Args:
      loss_fn: A loss that carries its logits.
      params: What it takes.
      batch: n examples.
      inputs_key: Where the inputs are.

    Returns:
      Shape (n,), bool.
    """
    return ~np.asarray(_fallen(trees.as_partial(loss_fn), params, batch, trees.Static(inputs_key)))


def sizes(deltas: Any, norm: Norm) -> np.ndarray:
    """Return the norm of each row.

    Args:
      deltas: Shape (n, ...).
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
      Shape (n,), at least float32.

    Example:
      >>> sizes(np.array([[3.0, -4.0], [0.0, 1.0]]), "l1").tolist()
      [7.0, 1.0]
    """
    return np.asarray(_sizes(deltas, trees.Static(norm)))


def evaluation(
    name: str, epsilon: float, was_right: np.ndarray, lengths: np.ndarray, outcome: Outcome
) -> Evaluation:
    """Sum up an outcome at one epsilon.

    Args:
      name: Of the attack.
      epsilon: Perturbations that are larger, by more than 1e-5 of it, have felled nothing.
      was_right: Shape (n,), bool: which examples were classified rightly before.
      lengths: Shape (n,): the norms of the clean inputs.
      outcome: What the attack did.

    Returns:
      An ``Evaluation``.
    """
    stands = was_right & (outcome.stands | (outcome.sizes > epsilon * (1 + _SLACK)))
    fell = was_right & ~stands
    relative = outcome.sizes[fell] / np.where(lengths[fell] > 0, lengths[fell], 1)
    mean, largest = (float(relative.mean()), float(relative.max())) if fell.any() else (0.0, 0.0)
    return Evaluation(
        name, epsilon, float(stands.mean()), mean, largest, outcome.seconds / max(len(stands), 1), stands
    )


def worst_case(evaluations: Sequence[Evaluation], outcomes: Sequence[Outcome]) -> Outcome:
    """Join attacks: an example stands if it withstood all; the smallest perturbation that felled it counts.

    Args:
      evaluations: What each attack did at one epsilon.
      outcomes: The same, by example and in the same order.

    Returns:
      An ``Outcome``, with the time of all together.
    """
    rows = list(zip(evaluations, outcomes, strict=True))
    smallest = np.min([np.where(e.withstood, np.inf, o.sizes) for e, o in rows], axis=0)
    stands = np.all([e.withstood for e, _ in rows], axis=0)
    return Outcome(stands, smallest, sum(o.seconds for _, o in rows))


@jax.jit
def _fallen(loss_fn: Partial, params: Params, batch: Any, inputs_key: trees.Static) -> jax.Array:
    return losses.per_example(loss_fn, params, batch, inputs_key.value)[1]


@jax.jit
def _sizes(deltas: jax.Array, norm: trees.Static) -> jax.Array:
    return jax.vmap(lambda delta: norms.size(delta, norm.value))(deltas)
