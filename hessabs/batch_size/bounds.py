"""Between which plans a rule that measures must lie, and what they take."""

from typing import Any, NamedTuple

from hessabs.batch_size.controller import Controller, Observation
from hessabs.batch_size.planner import Observe, Plan, plan, steady, told_eigenvalue, told_gradient
from hessabs.checks import require


class Bounds(NamedTuple):
    """The plans with the fewest and the most updates that a rule allows."""

    fewest: Plan
    most: Plan


def growth_bounds(
    controller: Controller, *, num_examples: int, epochs: int, decrease: float = 2.0, **options: Any
) -> Bounds:
    """Find the earliest and the latest growth that measurements could bring, and so bounds on the updates.

    The rule is run on the extremes of what it may measure: eigenvalues that fall by ``decrease`` each time,
    that are tiny and that are huge; gradients that are noise alone and that have none.

    Args:
      controller, num_examples, epochs: As in ``plan``.
      decrease: The fall of the eigenvalue from each measurement to the next, above 1, at least that which the
        rule asks for (twice that where its signal is multiplied by a learning rate that doubles).
      **options: As in ``plan``: ``micro_batch_size``, ``remainder``, ``whole_updates``.

    Returns:
      The two plans; the same twice for a rule that measures nothing.

    Raises:
      ValueError: As ``plan``; if ``decrease`` is not above 1.

    Example:
      >>> from hessabs.batch_size import hessian_adaptive
      >>> abs_rule = hessian_adaptive(128, 640, measure_every=49_920)
      >>> bounds = growth_bounds(abs_rule, num_examples=50_000, epochs=90)
      >>> bounds.fewest.updates, bounds.most.updates
      (7780, 11505)
    """
    require("be above 1", decrease=decrease)
    if controller.measures == "nothing":
        observers: tuple[Observe, ...] = (steady(controller),)
    elif controller.measures == "gradient":
        observers = (_loud, steady(controller))
    else:
        observers = (
            lambda samples, count: told_eigenvalue(samples, max(2.0**120 / decrease**count, 2.0**-120)),
            lambda samples, count: told_eigenvalue(samples, 2.0**-120),
            lambda samples, count: told_eigenvalue(samples, 2.0**120),
        )
    run = {"num_examples": num_examples, "epochs": epochs, **options}
    plans = [plan(controller, observe=observe, **run) for observe in observers]
    return Bounds(min(plans, key=lambda p: p.updates), max(plans, key=lambda p: p.updates))


def training_seconds(
    updates: float, measurements: int = 0, *, compute: float, communicate: float = 0.0, hessian: float = 0.0
) -> float:
    """Estimate the time of a run: ``updates * (compute + communicate) + measurements * hessian``.

    It assumes that an update takes the same time whatever its batch: as many more devices as the batch is
    larger. The time table of the slides (ResNet-18 on ImageNet) follows, except for its ABS.

    Args:
      updates, measurements: Of the run.
      compute, communicate: Seconds of computation (T_comp) and of communication (T_comm) per update.
      hessian: Seconds per measurement (T_Hess).

    Returns:
      Seconds.

    Raises:
      ValueError: If a time is negative or not finite.

    Example:
      >>> round(training_seconds(450_450, compute=2.2e-2, communicate=1.5e-2), 2)
      16666.65
    """
    require("be at least 0 seconds", compute=compute, communicate=communicate, hessian=hessian)
    return updates * (compute + communicate) + measurements * hessian


def _loud(samples: int, count: int) -> Observation:
    # Two parts whose estimates are a signal of 1e-6 and a noise of 2e6 times that and the size of a part.
    return told_gradient(samples, 2.0 - 1e-6, 1e12)
