"""The inner maximisation of robust training: an attack by name, the loss it raises, and who drives its loop."""

from typing import NamedTuple

from hessabs import attacks
from hessabs.typing import Attack

ONE_STEP = ("fgsm", "l2grad")
ITERATED = ("bim", "mi_fgsm", "pgd", "apgd", "fhsm", "l2hess")
STEP_SIZED = ("bim", "mi_fgsm", "pgd")
"""Attacks whose steps have a length that can be chosen."""


class InnerAttack(NamedTuple):
    """An attack as robust training uses it."""

    attack: Attack
    iterated: bool  # whether it is a loop


def make_inner(name: str, epsilon: float, *, steps: int = 10, step_size: float | None = None) -> InnerAttack:
    """Make an attack by its name, to go to the highest loss and not just to the first error.

    Args:
      name: Of ``ONE_STEP`` or ``ITERATED``.
      epsilon: Size of the perturbation, in pixel values of [0, 1]; the L2 norm of the whole image for l2grad
        and l2hess, L-infinity for the others.
      steps: Gradient steps, or products with the input Hessian (fhsm, l2hess).
      step_size: Length of a step, None for the attack's own choice; only for ``STEP_SIZED``.

    Raises:
      ValueError: If the name is unknown, or a number is out of range.

    Example:
      >>> make_inner("l2grad", 0.5).iterated
      False
    """
    if name in ONE_STEP:
        return InnerAttack(getattr(attacks, name)(epsilon), iterated=False)
    if name not in ITERATED:
        raise ValueError(f"`attack` must be one of {', '.join(ONE_STEP + ITERATED)}, got {name!r}.")
    if name in ("fhsm", "l2hess"):
        options: dict[str, object] = {"max_iters": steps}
    else:
        options = {"steps": steps, "early_exit": False}
        if name in STEP_SIZED:
            options["step_size"] = step_size
    return InnerAttack(getattr(attacks, name)(epsilon, **options), iterated=True)
