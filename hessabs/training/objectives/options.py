"""Robust training by name: from the fields of a config to an objective."""

import math
from typing import TYPE_CHECKING

from hessabs.training.robust.attacked import attacked
from hessabs.training.robust.free import free
from hessabs.training.robust.inner import ITERATED, ONE_STEP, STEP_SIZED, make_inner
from hessabs.training.robust.mixing import mixing
from hessabs.training.robust.objective import Objective
from hessabs.training.robust.sam import sam
from hessabs.training.robust.trades import trades

if TYPE_CHECKING:
    from hessabs.training.config import Config

ROBUST = ("none", "absa", "pgd", "trades", "free", "sam")
_DEFAULT_ATTACK = {"absa": "fgsm", "pgd": "pgd", "trades": "pgd"}
_FROM_RANDOM_STARTS = ("pgd", "apgd")


def check(config: "Config") -> None:
    """Check the fields of a config that say how it trains robustly.

    Args:
      config: The settings of a run, resolved or not.

    Raises:
      ValueError: In one line, what was got and what to do.
    """
    robust, attack, fraction = config.robust, config.attack, config.adversarial_fraction
    if robust not in (None, *ROBUST):
        raise ValueError(f"`robust` must be one of {', '.join(ROBUST)}, got {robust!r}.")
    if attack not in (None, *ONE_STEP, *ITERATED):
        raise ValueError(f"`attack` must be one of {', '.join(ONE_STEP + ITERATED)}, got {attack!r}.")
    if robust not in (None, "absa") and fraction:
        raise ValueError(
            f"`adversarial_fraction` is for robust=absa alone, got {fraction} with "
            f"robust={robust}; leave it out."
        )
    robust = _robust(config)
    if attack is not None and robust not in _DEFAULT_ATTACK:
        raise ValueError(
            f"`attack` is the inner attack of robust={', '.join(_DEFAULT_ATTACK)}, got {attack!r} with "
            f"robust={robust}; leave it out."
        )
    if robust == "trades" and attack not in (None, *_FROM_RANDOM_STARTS):
        raise ValueError(
            f"`attack` of robust=trades must start at random ({', '.join(_FROM_RANDOM_STARTS)}): at the image "
            f"itself the divergence has no gradient, got {attack!r}."
        )
    if config.micro_batch == "auto" and robust in ("free", "sam"):
        raise ValueError(
            f"`micro_batch` must be fixed for robust={robust}, whose perturbation is that of a micro-batch, "
            "got auto."
        )
    if config.keep_remainder and robust == "free":
        raise ValueError(
            "`keep_remainder` does not go with robust=free, whose epochs replay whole micro-batches."
        )
    for name in ("attack_steps", "free_replays"):
        if getattr(config, name) < 1:
            raise ValueError(f"`{name}` must be at least 1, got {getattr(config, name)}.")
    for name in ("trades_beta", "sam_rho"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be at least 0 and finite, got {value}.")
    size = config.attack_step_size
    if size is None:
        return
    if not 0 < size < math.inf:
        raise ValueError(f"`attack_step_size` must be positive and finite, got {size}.")
    if robust != "free" and _attack(config) not in STEP_SIZED:
        raise ValueError(
            f"`attack_step_size` is for robust=free and the attacks {', '.join(STEP_SIZED)}, got {size}; "
            "leave it out."
        )


def resolve(config: "Config") -> "Config":
    """Fill in the fields that say how a run trains robustly.

    Args:
      config: Settings that ``check`` has passed.

    Returns:
      The config with ``robust`` and ``adversarial_fraction``, and ``attack`` where there is one.
    """
    fraction = config.adversarial_fraction
    robust = _robust(config)
    if fraction is None:
        fraction = 0.2 if robust == "absa" else 0.0
    return config._replace(robust=robust, attack=_attack(config), adversarial_fraction=fraction)


def make_objective(config: "Config", *, driven_by_python: bool | None = None) -> Objective:
    """Make the objective of a config.

    Args:
      config: Resolved settings.
      driven_by_python: As for ``make_inner``.

    Returns:
      An ``Objective``.
    """
    if config.robust == "sam":
        return sam(config.sam_rho)
    if config.robust == "free":
        return free(config.epsilon, config.attack_step_size)
    if config.attack is None:
        return Objective()
    inner = make_inner(
        config.attack,
        config.epsilon,
        steps=config.attack_steps,
        step_size=config.attack_step_size,
        driven_by_python=driven_by_python,
    )
    if config.robust == "trades":
        return trades(inner, config.trades_beta)
    if config.robust == "pgd":
        return attacked(inner)
    return mixing(inner, config.adversarial_fraction or 0.0, config.micro_batch_size)


def _robust(config: "Config") -> str:
    if config.robust is not None:
        return config.robust
    fraction = config.adversarial_fraction
    return "absa" if fraction or (fraction is None and config.method == "absa") else "none"


def _attack(config: "Config") -> str | None:
    return config.attack or _DEFAULT_ATTACK.get(_robust(config))
