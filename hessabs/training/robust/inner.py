"""The inner maximisation of robust training: an attack by name, the loss it raises, and who drives its loop."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from hessabs import attacks, loops
from hessabs.attacks import losses
from hessabs.training.losses import evaluation_logits
from hessabs.typing import Attack, LossFn

ONE_STEP = ("fgsm", "l2grad")
ITERATED = ("bim", "mi_fgsm", "pgd", "apgd", "fhsm", "l2hess")
STEP_SIZED = ("bim", "mi_fgsm", "pgd")
"""Attacks whose steps have a length that can be chosen."""


class InnerAttack(NamedTuple):
    """An attack as robust training uses it."""

    attack: Attack
    loss: Callable[[nn.Module, object], LossFn]  # (model, model_state) -> what it raises, in evaluation mode
    driven_by_python: bool  # whether its loop is better driven by Python here


def make_inner(
    name: str,
    epsilon: float,
    *,
    steps: int = 10,
    step_size: float | None = None,
    driven_by_python: bool | None = None,
) -> InnerAttack:
    """Make an attack by its name, to go to the highest loss and not just to the first error.

    Args:
      name: Of ``ONE_STEP`` or ``ITERATED``.
      epsilon: Size of the perturbation, in pixel values of [0, 1]; the L2 norm of the whole image for l2grad
        and l2hess, L-infinity for the others.
      steps: Gradient steps, or products with the input Hessian (fhsm, l2hess).
      step_size: Length of a step, None for the attack's own choice; only for ``STEP_SIZED``.
      driven_by_python: Whether Python drives the loop of an iterated attack, where one call of a compiled loop
        would do; None to choose by the backend, see ``hessabs.loops``.

    Returns:
      An ``InnerAttack``.

    Raises:
      ValueError: If the name is unknown, or a number is out of range.

    Example:
      >>> make_inner("l2grad", 0.5).driven_by_python
      False
    """
    if name in ONE_STEP:
        return InnerAttack(getattr(attacks, name)(epsilon), _with_logits, False)
    if name not in ITERATED:
        raise ValueError(f"`attack` must be one of {', '.join(ONE_STEP + ITERATED)}, got {name!r}.")
    if name in ("fhsm", "l2hess"):
        options: dict[str, object] = {"max_iters": steps}
    else:
        options = {"steps": steps, "early_exit": False}
        if name in STEP_SIZED:
            options["step_size"] = step_size
    attack = getattr(attacks, name)(epsilon, **options)
    if driven_by_python is None:
        driven_by_python = loops.choose(None) == "host"
    return InnerAttack(attack, _with_logits, driven_by_python)


def _with_logits(model: nn.Module, model_state: object) -> LossFn:
    return losses.cross_entropy(evaluation_logits(model, model_state))
