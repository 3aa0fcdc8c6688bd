"""How many examples withstand which attack: accuracy by attack and epsilon, size and time of the attacks."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import losses, norms, outcomes
from hessabs.attacks.checks import check_bounds, check_epsilon, checked_inputs
from hessabs.attacks.inputs import get_inputs
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.outcomes import Evaluation, Outcome
from hessabs.typing import Attack, LossFn, Params

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
    source: tuple[LossFn, Params] | None = None,
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
      source: Another (loss, params) to make the examples on: how they transfer. None for the network itself.

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
    _, spec = losses.parts(loss_fn, "evaluate")
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
    right = outcomes.right(loss_fn, params, batch, inputs_key)
    _warn(look(loss_fn, params, batch, inputs_key), right)
    lengths = outcomes.sizes(inputs, norm)

    def run(attack: Attack, number: int) -> Outcome:
        own_key = None if key is None else jax.random.fold_in(key, number)
        options: dict[str, Any] = {"norm": norm, "bounds": bounds, "inputs_key": inputs_key, "source": source}
        return outcomes.run(attack, loss_fn, params, batch, own_key, **options)[0]

    rows = [Evaluation(CLEAN, 0.0, float(right.mean()), 0.0, 0.0, 0.0, right)]
    unbounded = {name: run(attack, number) for number, (name, attack) in enumerate(minimal.items())}
    for epsilon in epsilons:
        results = dict(unbounded)
        for number, (name, make) in enumerate(attacks.items(), start=len(minimal)):
            results[name] = run(make(epsilon), number)
        found = [outcomes.evaluation(name, epsilon, right, lengths, o) for name, o in results.items()]
        rows += found
        if len(found) > 1:
            worst = outcomes.worst_case(found, list(results.values()))
            rows.append(outcomes.evaluation(WORST, epsilon, right, lengths, worst))
    return rows


class Misleading(NamedTuple):
    """What makes the accuracy under attack look better than it is."""

    zero_gradient: np.ndarray  # (n,), bool: examples at which the gradient of the loss is zero
    random: bool  # whether the network gives other logits for the same inputs at a second call

    def messages(self, right: np.ndarray) -> list[str]:
        """Say it, in a line each.

        Args:
          right: Shape (n,), bool: which examples are classified rightly.

        Returns:
          No, one or two lines.
        """
        lines, flat = [], int(np.sum(self.zero_gradient & right))
        if flat:
            lines.append(
                f"The gradient of {flat} of {int(right.sum())} rightly classified examples is zero: attacks "
                "that follow it cannot move them, which is no robustness. Try another loss, minimal attacks or "
                "square."
            )
        if self.random:
            lines.append(
                "The network gives other logits for the same inputs at a second call: it is not deterministic, "
                "and the accuracies are those of single draws."
            )
        return lines


def look(loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int) -> Misleading:
    """Look for what misleads attacks.

    Args:
      loss_fn: A loss that carries its logits.
      params: What it takes.
      batch: n examples.
      inputs_key: Where the inputs are.

    Returns:
      What was found.
    """
    logits_fn, _ = losses.parts(loss_fn, "look")
    gradient = np.asarray(_gradient(trees.as_partial(loss_fn), params, batch, trees.Static(inputs_key)))
    inputs = get_inputs(batch, inputs_key)
    first, second = (np.asarray(logits_fn(params, inputs)) for _ in range(2))
    zero = np.all(gradient.reshape(len(gradient), -1) == 0, axis=1)
    return Misleading(np.asarray(zero), not np.array_equal(first, second))


@jax.jit
def _gradient(loss_fn: Partial, params: Params, batch: Any, inputs_key: trees.Static) -> jax.Array:
    return losses.with_gradient(loss_fn, params, batch, inputs_key.value)[2]


def _warn(found: Misleading, right: np.ndarray) -> None:
    for message in found.messages(right):
        warnings.warn(message, stacklevel=3)
