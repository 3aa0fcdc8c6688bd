"""The inner maximisation of robust training: an attack by name, on the inputs of the task that is learnt."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from hessabs import attacks
from hessabs.attacks.norms import Bounds
from hessabs.training.task import Task
from hessabs.typing import Attack

ONE_STEP = ("fgsm", "l2grad")
ITERATED = ("bim", "mi_fgsm", "pgd", "apgd", "fhsm", "l2hess")
STEP_SIZED = ("bim", "mi_fgsm", "pgd")
"""Attacks whose steps have a length that can be chosen."""


class InnerAttack(NamedTuple):
    """An attack as robust training uses it: one that is still to hear what it may change.

    >>> inner = InnerAttack(functools.partial(attacks.pgd, 0.1, steps=5, early_exit=False), iterated=True)
    """

    make: Callable[..., Attack]  # make(bounds=, inputs_key=) -> attack
    iterated: bool  # whether it is a loop

    def on(self, task: Task) -> Attack:
        """Make the attack on the inputs of a task, within its bounds."""
        return _made(self.make, task.bounds, task.inputs_key)


@functools.lru_cache(32)  # an attack that is the same object compiles nothing again
def _made(make: Callable[..., Attack], bounds: Bounds, inputs_key: str) -> Attack:
    return make(bounds=bounds, inputs_key=inputs_key)


def make_inner(name: str, epsilon: float, *, steps: int = 10, step_size: float | None = None) -> InnerAttack:
    """Make an attack by its name, to go to the highest loss and not just to the first error.

    Args:
      name: Of ``ONE_STEP`` or ``ITERATED``.
      epsilon: Size of the perturbation, in the units of the prepared inputs; the L2 norm of the whole input for
        l2grad and l2hess, L-infinity for the others.
      steps: Gradient steps, or products with the input Hessian (fhsm, l2hess).
      step_size: Length of a step, None for the attack's own choice; only for ``STEP_SIZED``.

    Raises:
      ValueError: If the name is unknown, or a number is out of range.

    Example:
      >>> make_inner("l2grad", 0.5).iterated
      False
    """
    if name in ONE_STEP:
        return _inner(getattr(attacks, name), epsilon, iterated=False)
    if name not in ITERATED:
        raise ValueError(f"`attack` must be one of {', '.join(ONE_STEP + ITERATED)}, got {name!r}.")
    if name in ("fhsm", "l2hess"):
        options: dict[str, object] = {"max_iters": steps}
    else:
        options = {"steps": steps, "early_exit": False}
        if name in STEP_SIZED:
            options["step_size"] = step_size
    return _inner(getattr(attacks, name), epsilon, iterated=True, **options)


def _inner(factory: Callable[..., Attack], epsilon: float, iterated: bool, **options: object) -> InnerAttack:
    make = functools.partial(factory, epsilon, **options)
    make(bounds=None)  # a number out of its range is refused here
    return InnerAttack(make, iterated)
