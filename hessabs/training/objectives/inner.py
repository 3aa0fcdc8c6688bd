"""The inner maximisation of robust training: an attack by name, on the inputs of the task that is learnt."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from hessabs import attacks
from hessabs.attacks.norms import Bounds
from hessabs.checks import refuse_unread
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


def make_inner(
    name: str, epsilon: float, *, steps: int | None = None, step_size: float | None = None
) -> InnerAttack:
    """Make an attack by its name, to go to the highest loss and not just to the first error.

    Args:
      name: Of ``ONE_STEP`` or ``ITERATED``.
      epsilon: Size of the perturbation, in the units of the prepared inputs; the L2 norm of the whole input for
        l2grad and l2hess, L-infinity for the others.
      steps: Gradient steps, or products with the input Hessian (fhsm, l2hess), None for 10; only for
        ``ITERATED``.
      step_size: Length of a step, None for the attack's own choice; only for ``STEP_SIZED``.

    Raises:
      ValueError: If the name is unknown, a number is out of range, or the attack does not read it.

    Example:
      >>> make_inner("l2grad", 0.5).iterated
      False
    """
    if name not in ONE_STEP + ITERATED:
        raise ValueError(f"`attack` must be one of {', '.join(ONE_STEP + ITERATED)}, got {name!r}.")
    given = {n: value for n, value in (("steps", steps), ("step_size", step_size)) if value is not None}
    refuse_unread(given, {"steps": ITERATED, "step_size": STEP_SIZED}, attack=name)
    options: dict[str, object] = {}
    if name in ("fhsm", "l2hess"):
        options = {"max_iters": 10 if steps is None else steps}
    elif name in ITERATED:
        options = {"early_exit": False, "steps": 10, **given}
    make = functools.partial(getattr(attacks, name), epsilon, **options)
    make(bounds=None)  # a number out of its range is refused here
    return InnerAttack(make, name in ITERATED)
