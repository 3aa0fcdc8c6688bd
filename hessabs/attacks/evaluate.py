"""How many examples withstand which attack: accuracy by attack and epsilon, size and time of the attacks."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs.attacks import losses, norms
from hessabs.attacks.checks import check_bounds, check_epsilon, checked_inputs
from hessabs.attacks.inputs import get_inputs
from hessabs.attacks.norms import Bounds, Norm
from hessabs.typing import Attack, LossFn, Params


class Evaluation(NamedTuple):
    """What one attack does at one epsilon; ``WORST`` is the worst of all attacks for each example."""

    attack: str
    epsilon: float
    accuracy: float  # part of the examples that are classified rightly, in [0, 1]
    mean_relative: float  # ||x' - x|| / ||x||, mean over those that fell and were right before; 0 if none
    max_relative: float  # the largest of them
    seconds_per_image: float  # wall clock of the attack, compilation included unless it was compiled before
    withstood: np.ndarray  # (n,), bool: which examples are classified rightly


CLEAN = "clean"
WORST = "worst case"


def evaluate(
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    attacks: Mapping[str, Callable[[float], Attack]],
    epsilons: Sequence[float],
    key: jax.Array | None = None,
    *,
    minimal: Mapping[str, Attack] | None = None,
    norm: Norm = "linf",
    bounds: Bounds = (0.0, 1.0),
    inputs_key: str | int = "image",
) -> list[Evaluation]:
    """Attack one batch in several ways at several epsilons.

    Args:
      loss_fn: A loss that carries its logits (``attacks.losses``), untargeted.
      params: The params to attack.
      batch: n examples; their labels say what is right.
      attacks: For each name a function from epsilon to an attack, for instance
        ``{"pgd": lambda epsilon: pgd(epsilon, restarts=5)}``. Each gets a random key of its own.
      epsilons: Radii in the units of the batch, each at least 0.
      key: Random key; only needed if an attack needs one.
      minimal: Attacks without an epsilon (DeepFool, Carlini-Wagner, trust region), by name. Each runs once; at
        epsilon it has felled the examples whose perturbation has at most that norm.
      norm: In which epsilon and the relative sizes are measured: ``"linf"``, ``"l2"`` or ``"l1"``.
      bounds: (lowest, highest) value of an input, or None.
      inputs_key: Key, field name or index of the inputs in the batch.

    Returns:
      One ``Evaluation`` a row: the clean batch first, then each epsilon with every attack and, if there are
      several, the worst case. An attack whose result lies outside the ball of epsilon by more than 1e-5 of it,
      or outside the bounds, has not felled that example.

    Raises:
      ValueError: If an argument is out of range, the batch is not as described, or the loss is targeted or
        carries no logits.

    Warns:
      UserWarning: If the gradient of a rightly classified example is zero, for attacks that follow it then say
        nothing, or if the network gives other logits for the same inputs at a second call.

    Example:
      >>> import jax.numpy as jnp
      >>> from hessabs.attacks import fgsm
      >>> batch = {"image": jnp.array([[0.6, 0.4], [0.9, 0.1]]), "label": jnp.array([0, 0])}
      >>> loss_fn = losses.cross_entropy(lambda w, x: x @ w)
      >>> rows = evaluate(loss_fn, jnp.eye(2), batch, {"fgsm": fgsm}, [0.2])
      >>> [(row.attack, row.epsilon, row.accuracy) for row in rows]
      [('clean', 0.0, 1.0), ('fgsm', 0.2, 0.5)]

    References:
      Croce and Hein (2020), arXiv:2003.01690, section 5, for the worst case over an ensemble.
    """
    logits_fn, spec = losses.parts(loss_fn, "evaluate")
    if spec.targeted:
        raise ValueError(
            "evaluate counts labels, got a loss with targeted=True; attack with it, count without."
        )
    norms.check_norm(norm)
    check_bounds(bounds)
    for epsilon in epsilons:
        check_epsilon(epsilon)
    minimal = {} if minimal is None else minimal
    if names := {CLEAN, WORST} & {*attacks, *minimal} | {*attacks} & {*minimal}:
        raise ValueError(
            f"Every attack needs a name of its own, not {CLEAN!r} or {WORST!r}, got {sorted(names)}."
        )
    inputs = np.asarray(checked_inputs(loss_fn, params, batch, inputs_key, bounds))
    withstands = jax.jit(lambda params, batch: ~losses.per_example(loss_fn, params, batch, inputs_key)[1])

    right = np.asarray(withstands(params, batch))
    _warn_of_what_misleads(loss_fn, logits_fn, params, batch, inputs_key, right)
    sizes = jax.jit(jax.vmap(lambda delta: norms.size(delta, norm)))
    lengths = np.asarray(sizes(inputs))

    def run(attack: Attack, number: int) -> tuple[np.ndarray, np.ndarray, float]:
        own_key = None if key is None else jax.random.fold_in(key, number)
        start = time.perf_counter()
        attacked = jax.block_until_ready(attack(loss_fn, params, batch, own_key))
        seconds = (time.perf_counter() - start) / len(right)
        points = np.asarray(get_inputs(attacked, inputs_key))
        stands = np.asarray(withstands(params, attacked))
        if bounds is not None:
            flat = points.reshape(len(right), -1)
            low, high = np.asarray(bounds, flat.dtype)
            stands = stands | (flat < low).any(axis=1) | (flat > high).any(axis=1)
        return stands, np.asarray(sizes(points - inputs)), seconds

    def row(name: str, epsilon: float, stands: np.ndarray, moved: np.ndarray, seconds: float) -> Evaluation:
        stands = right & (stands | (moved > epsilon * (1 + 1e-5)))
        fell = right & ~stands
        relative = moved[fell] / np.where(lengths[fell] > 0, lengths[fell], 1)
        mean, largest = (float(relative.mean()), float(relative.max())) if fell.any() else (0.0, 0.0)
        return Evaluation(name, epsilon, float(stands.mean()), mean, largest, seconds, stands)

    rows = [Evaluation(CLEAN, 0.0, float(right.mean()), 0.0, 0.0, 0.0, right)]
    unbounded = {name: run(attack, number) for number, (name, attack) in enumerate(minimal.items())}
    for epsilon in epsilons:
        results = dict(unbounded)
        for number, (name, make) in enumerate(attacks.items(), start=len(minimal)):
            results[name] = run(make(epsilon), number)
        found = {name: row(name, epsilon, *result) for name, result in results.items()}
        rows += found.values()
        if len(found) > 1:
            # Of the attacks that felled an example, the smallest perturbation counts.
            moved = [np.where(found[name].withstood, np.inf, results[name][1]) for name in found]
            stands = np.all([r.withstood for r in found.values()], axis=0)
            seconds = sum(r.seconds_per_image for r in found.values())
            rows.append(row(WORST, epsilon, stands, np.min(moved, axis=0), seconds))
    return rows


def _warn_of_what_misleads(
    loss_fn: LossFn,
    logits_fn: losses.LogitsFn,
    params: Params,
    batch: Any,
    inputs_key: str | int,
    right: np.ndarray,
) -> None:
    gradient = jax.jit(lambda params, batch: losses.with_gradient(loss_fn, params, batch, inputs_key)[2])
    flat = np.asarray(gradient(params, batch)).reshape(len(right), -1)
    flat_right = int(np.sum(~flat.any(axis=1) & right))
    if flat_right:
        warnings.warn(
            f"The gradient of {flat_right} of {int(right.sum())} rightly classified examples is zero: attacks "
            "that follow it cannot move them, which is no robustness. Try another loss or minimal attacks.",
            stacklevel=3,
        )
    inputs = get_inputs(batch, inputs_key)
    first, second = (np.asarray(logits_fn(params, inputs)) for _ in range(2))
    if not np.array_equal(first, second):
        warnings.warn(
            "The network gives other logits for the same inputs at a second call: it is not deterministic, and "
            "the accuracies below are those of single draws.",
            stacklevel=3,
        )
