"""How many examples withstand which attack: accuracy by attack and epsilon, size and time of the attacks."""

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_args

import jax
import numpy as np

from hessabs.attacks import losses, misleading, outcomes
from hessabs.attacks.checks import check_key, checked_ball, checked_bounds, checked_inputs
from hessabs.attacks.given import on_automatic_axes
from hessabs.attacks.misleading import Misleading
from hessabs.attacks.norms import Bounds, Norm
from hessabs.attacks.outcomes import CLEAN, WORST, Clean, Evaluation, Outcome
from hessabs.attacks.square import square
from hessabs.checks import require_one_of
from hessabs.typing import Attack, LossFn, Params


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
    keep_fallen: bool = False,
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
      norm: In which epsilon and the relative sizes are measured.
      bounds, inputs_key: As in every attack (``hessabs.attacks``).
      source: Another (loss, params) to make the examples on: how they transfer. None for the network itself.
        Give attacks ``early_exit=False``: one that stops at the first error of the source transfers badly.
        ``ensemble``, ``square`` and minimal attacks stop there in any case.
      keep_fallen: If True an example that an attack felled at a smaller epsilon has fallen at the larger ones
        too, for the perturbation lies in their balls: the accuracy then never rises with epsilon.

    Returns:
      One ``Evaluation`` a row: the clean batch first, then each epsilon with every attack and, if there are
      several, the worst case. A result that is not finite, lies outside the bounds, or outside the ball of
      epsilon by more than rounding in the dtype of the inputs, has not felled its example. An example whose
      logits are not finite is neither robust nor fallen: ``withstood`` is False and ``non_finite`` True.

    Raises:
      ValueError: If an argument is out of range or of another kind, the batch is empty or not as described, or
        the loss is targeted or carries no logits.

    Warns:
      UserWarning: Of what makes the accuracy look better than it is: gradients that are zero, or not finite;
        attacks on ``source`` with ``early_exit``; a network that has changed since it was compiled;
        logits that look like probabilities; a network that gives other logits at a second call, or whose logits
        depend on the other examples; ``square`` that fells more than the attacks along the gradient; an epsilon
        beyond the bounds. And of what does not count: logits that are not finite, results outside the ball.

    Example:
      >>> import jax.numpy as jnp
      >>> from hessabs.attacks import fgsm
      >>> batch = {"image": jnp.array([[0.6, 0.4], [0.9, 0.1]]), "label": jnp.array([0, 0])}
      >>> loss_fn = losses.cross_entropy(lambda w, x: 4 * x @ w)
      >>> rows = evaluate(loss_fn, jnp.eye(2), batch, {"fgsm": fgsm}, [0.2])
      >>> [(row.attack, row.epsilon, row.accuracy) for row in rows]
      [('clean', 0.0, 1.0), ('fgsm', 0.2, 0.5)]

    References:
      Croce and Hein (2020), arXiv:2003.01690, section 5, for the worst case over an ensemble.
    """
    _, spec = losses.parts(loss_fn, "evaluate")
    loss_fn, params, batch, source = on_automatic_axes((loss_fn, params, batch, source))
    if spec.targeted:
        raise ValueError(
            "evaluate counts labels, got a loss with targeted=True; attack with it, count without."
        )
    require_one_of(get_args(Norm), norm=norm)
    bounds = checked_bounds(bounds)
    minimal = {} if minimal is None else minimal
    _check_attacks(attacks, minimal)
    if isinstance(epsilons, str) or np.ndim(epsilons) != 1:
        raise ValueError(f"`epsilons` must be a sequence of numbers, each for all examples, got {epsilons!r}.")
    for epsilon in epsilons:
        checked_ball(epsilon, norm, bounds)
    check_key(key)
    checked_inputs(loss_fn, params, batch, inputs_key, bounds)
    clean = outcomes.look(loss_fn, params, batch, inputs_key, norm)
    signs = misleading.look(loss_fn, params, batch, inputs_key, clean.right)
    options: dict[str, Any] = {"norm": norm, "bounds": bounds, "inputs_key": inputs_key, "source": source}
    black_box, stopped = set[str](), set[str]()

    def run(name: str, attack: Attack, number: int) -> Outcome:
        if source is not None and getattr(attack, "early_exit", False):
            stopped.add(name)
        if getattr(attack, "__module__", None) == square.__module__:
            black_box.add(name)
        own_key = None if key is None else jax.random.fold_in(key, number)
        return outcomes.run(attack, loss_fn, params, batch, own_key, **options)[0]

    unbounded = {name: run(name, attack, number) for number, (name, attack) in enumerate(minimal.items())}
    results: dict[tuple[str, float], Outcome] = {}
    for epsilon in map(float, epsilons):
        results |= {(name, epsilon): outcome for name, outcome in unbounded.items()}
        for number, (name, make) in enumerate(attacks.items(), start=len(minimal)):
            results[name, epsilon] = run(name, make(epsilon), number)
    rows, messages = report(
        clean,
        signs,
        results,
        keep_fallen=keep_fallen,
        minimal=minimal,
        black_box=black_box,
        stopped=stopped,
    )
    for message in messages:
        warnings.warn(message, stacklevel=2)
    return rows


def report(
    clean: Clean,
    signs: Misleading,
    results: Mapping[tuple[str, float], Outcome],
    *,
    keep_fallen: bool,
    minimal: Collection[str],
    black_box: Collection[str],
    stopped: Collection[str] = (),
) -> tuple[list[Evaluation], list[str]]:
    """Sum up what was found of a whole test set: the table, and a line for each thing in it that misleads.

    ``clean``, ``signs`` and each result may be ``outcomes.join`` of batches: of ``outcomes.look``,
    ``misleading.look`` and ``outcomes.run``. ``minimal`` names the attacks that know no epsilon, whose one
    result counts at each; ``black_box`` those that follow no gradient; ``stopped`` those that went no farther
    than the first error of another network, that the examples were made on.
    """
    rows = outcomes.table(clean, results, keep_fallen=keep_fallen)
    outside, masked = misleading.outside(results, clean, minimal), misleading.masked(rows, black_box)
    found = [*signs.messages(clean.right), *misleading.not_finite(rows), *outside, *masked]
    return rows, [*found, *misleading.barely_fallen(stopped)]


def _check_attacks(attacks: Any, minimal: Any) -> None:
    for argument, given, positional, what in (
        ("attacks", attacks, 1, "a function from epsilon to an attack, fgsm or lambda epsilon: fgsm(epsilon)"),
        ("minimal", minimal, 4, "an attack, deepfool()"),
    ):
        if not isinstance(given, Mapping):
            raise ValueError(f"`{argument}` must map a name to {what}, got {given!r}.")
        for name, value in given.items():
            if not _takes(value, positional):
                raise ValueError(
                    f"`{argument}` must map each name to {what}, got {value!r} for {name!r}. An attack that "
                    "takes no epsilon belongs in `minimal`."
                )
    if names := {CLEAN, WORST} & {*attacks, *minimal} | {*attacks} & {*minimal}:
        raise ValueError(
            f"Every attack needs a name of its own, not {CLEAN!r} or {WORST!r}, got {sorted(names)}."
        )


def _takes(function: Any, positional: int) -> bool:
    try:
        inspect.signature(function).bind(*[None] * positional)
    except TypeError:  # it takes others, or cannot be called
        return False
    except ValueError:  # it has no signature to see
        return True
    return True
