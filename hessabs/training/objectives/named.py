"""Robust training by name: from settings to an objective."""

from collections.abc import Collection
from typing import Annotated, Any, Literal, NamedTuple

from hessabs.checks import refuse_unread
from hessabs.training import fields
from hessabs.training.fields import changed
from hessabs.training.objectives.free import free
from hessabs.training.objectives.inner import ITERATED, STEP_SIZED, make_inner
from hessabs.training.objectives.mixing import attacked, mixing
from hessabs.training.objectives.objective import Objective
from hessabs.training.objectives.sam import sam
from hessabs.training.objectives.trades import trades

_DEFAULT_ATTACK: dict[str, str] = {"absa": "fgsm", "pgd": "pgd", "trades": "pgd"}
_FROM_RANDOM_STARTS = ("pgd", "apgd")
_READ_WITH = {  # which kinds of robust training read a setting
    "attack": tuple(_DEFAULT_ATTACK),
    "epsilon": ("absa", "pgd", "trades", "free"),
    "trades_beta": ("trades",),
    "free_replays": ("free",),
    "sam_rho": ("sam",),
    "fraction_decrease": ("absa",),
    "adversarial_epochs": ("absa",),
}


class ObjectiveSettings(NamedTuple):
    """How a run trains robustly. None is decided by ``resolve_objective``."""

    robust: Annotated[
        Literal["none", "absa", "pgd", "trades", "free", "sam"] | None,
        "none; absa: a fraction of each micro-batch is attacked; pgd: all of it; trades: clean loss and "
        "divergence nearby; free: replays; sam: worst params nearby; default: absa for method absa, else none",
    ] = None
    attack: Annotated[
        Literal["fgsm", "l2grad", "bim", "mi_fgsm", "pgd", "apgd", "fhsm", "l2hess"] | None,
        "inner attack of robust absa, pgd, trades; default: fgsm for absa, else pgd",
    ] = None
    attack_steps: Annotated[
        int, "gradient steps (fhsm, l2hess: Hessian products) of the inner attack", "be at least 1"
    ] = 10
    attack_step_size: Annotated[
        float | None,
        "step of bim, mi_fgsm, pgd and of robust free; default: their own, free: epsilon",
        "be positive and finite",
    ] = None
    trades_beta: Annotated[float, "weight of the divergence (trades)", "be at least 0 and finite"] = 6.0
    free_replays: Annotated[
        int,
        "passes over each micro-batch in a row (free); an epoch sees so many times fewer images",
        "be at least 1",
    ] = 4
    sam_rho: Annotated[float, "L2 norm of the step to the worst params (sam)", "be at least 0 and finite"] = (
        0.05
    )
    epsilon: Annotated[
        float,
        "size of the adversarial perturbation in training, in units of the inputs, l-infinity; "
        "l2grad, l2hess: l2 norm of the whole image",
        "be at least 0 and finite",
    ] = 0.005


def resolve_objective(
    settings: ObjectiveSettings, method: str, fraction: float | None, given: Collection[str] = ()
) -> ObjectiveSettings:
    """Check the settings, and fill in what depends on the method and its fraction (None: the method's own).

    ``given``: as in ``check_optimizer``.
    """
    fields.check(settings)
    robust, given = settings.robust, {*given, *changed(settings)}
    if robust is not None and fraction:
        refuse_unread(["adversarial_fraction"], {"adversarial_fraction": ["absa"]}, robust=robust)
    if robust is None:
        robust = "absa" if fraction or (fraction is None and method == "absa") else "none"
    attack: Any = settings.attack or _DEFAULT_ATTACK.get(robust)
    refuse_unread(given, _READ_WITH, robust=robust)
    refuse_unread(given, {"attack_steps": ITERATED}, attack=attack or "none")
    if robust == "trades" and attack not in _FROM_RANDOM_STARTS:
        raise ValueError(
            f"`attack` of robust=trades must start at random ({', '.join(_FROM_RANDOM_STARTS)}): at the image "
            f"itself the divergence has no gradient, got {attack!r}."
        )
    size = settings.attack_step_size
    if size is not None and robust != "free" and attack not in STEP_SIZED:
        raise ValueError(
            f"`attack_step_size` is read with robust=free and the attacks {', '.join(STEP_SIZED)}, got {size}; "
            "leave it out."
        )
    return settings._replace(robust=robust, attack=attack)


def make_objective(settings: ObjectiveSettings, fraction: float) -> Objective:
    """Make the objective of resolved settings; ``fraction`` is the largest that the rule will say (absa)."""
    if settings.robust == "sam":
        return sam(settings.sam_rho)
    if settings.robust == "free":
        return free(settings.epsilon, settings.attack_step_size, settings.free_replays)
    if settings.attack is None:
        return Objective()
    steps = settings.attack_steps if settings.attack in ITERATED else None
    inner = make_inner(settings.attack, settings.epsilon, steps=steps, step_size=settings.attack_step_size)
    if settings.robust == "trades":
        return trades(inner, settings.trades_beta)
    return attacked(inner) if settings.robust == "pgd" else mixing(inner, fraction)
