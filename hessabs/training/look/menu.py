"""The attacks of ``hessabs attack`` by name, and how each one is made of the options."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hessabs import attacks
from hessabs.typing import Attack


class Entry(NamedTuple):
    """One attack."""

    factory: Callable[..., Attack]  # of epsilon, unless `minimal`, and of options by name
    norms: tuple[str, ...]  # the first is that of a factory that has one alone
    reads: tuple[str, ...] = ()  # of steps, restarts and queries
    minimal: bool = False  # looks for the smallest perturbation, whatever epsilon is
    black_box: bool = False  # follows no gradient


def _trust_region(*, norm: str, **options: Any) -> Attack:
    radius = {"l2": 0.05, "linf": 0.005}[norm]  # to begin with; it adapts
    return attacks.trust_region(radius, norm=norm, **options)  # type: ignore[arg-type]


_BOTH, _ALL = ("linf", "l2"), ("linf", "l2", "l1")
MENU: dict[str, Entry] = {
    "fgsm": Entry(attacks.fgsm, _BOTH),
    "l2grad": Entry(attacks.l2grad, ("l2",)),
    "bim": Entry(attacks.bim, _ALL, ("steps",)),
    "pgd": Entry(attacks.pgd, _ALL, ("steps", "restarts")),
    "mi_fgsm": Entry(attacks.mi_fgsm, _ALL, ("steps",)),
    "adam_pgd": Entry(attacks.adam_pgd, _ALL, ("steps", "restarts")),
    "apgd": Entry(attacks.apgd, _ALL, ("steps", "restarts")),
    "fhsm": Entry(attacks.fhsm, ("linf",)),
    "l2hess": Entry(attacks.l2hess, ("l2",)),
    "square": Entry(attacks.square, _ALL, ("queries",), black_box=True),
    "ensemble": Entry(attacks.ensemble, _ALL, ("steps", "queries")),
    "trust_region": Entry(_trust_region, _BOTH, ("steps",), minimal=True),
    "deepfool": Entry(attacks.deepfool, _BOTH, ("steps",), minimal=True),
    "carlini_wagner": Entry(attacks.carlini_wagner, ("l2",), ("steps",), minimal=True),
}
"""From the cheapest to the dearest; those that know no epsilon last."""


def readers(option: str) -> tuple[str, ...]:
    """List the attacks that ``steps``, ``restarts`` or ``queries`` has an influence on.

    Example:
      >>> readers("queries")
      ('square', 'ensemble')
    """
    return tuple(name for name, entry in MENU.items() if option in entry.reads)


def make(name: str, epsilon: float, options: Any, **inputs: Any) -> Attack:
    """Make an attack of ``MENU`` on ``inputs``: their ``bounds`` and ``inputs_key``.

    Example:
      >>> import types
      >>> make("l2grad", 0.1, types.SimpleNamespace(norm="linf"))
      Traceback (most recent call last):
      ValueError: `attack` l2grad has the norms l2, got norm='linf'.
    """
    entry = MENU.get(name)
    if entry is None:
        raise ValueError(f"`attack` must name some of {', '.join(MENU)}, got {name!r}.")
    if options.norm not in entry.norms:
        raise ValueError(f"`attack` {name} has the norms {', '.join(entry.norms)}, got norm={options.norm!r}.")
    named = {option: getattr(options, option) for option in entry.reads}
    if len(entry.norms) > 1:
        named["norm"] = options.norm
    return entry.factory(*(() if entry.minimal else (epsilon,)), **named, **inputs)
