"""The attacks of ``hessabs attack`` by name: which norms each one has, and how it is made of the options."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hessabs import attacks
from hessabs.typing import Attack


class _Dish(NamedTuple):
    norms: tuple[str, ...]
    make: Callable[[float, Any], Attack]  # (epsilon, options) -> attack
    minimal: bool = False  # looks for the smallest perturbation, whatever epsilon is
    black_box: bool = False  # follows no gradient


_RADIUS = {"l2": 0.05, "linf": 0.005}  # to begin with; it adapts
_BOTH, _ALL = ("linf", "l2"), ("linf", "l2", "l1")
_MENU: dict[str, _Dish] = {
    "fgsm": _Dish(_BOTH, lambda e, o: attacks.fgsm(e, norm=o.norm)),
    "l2grad": _Dish(("l2",), lambda e, o: attacks.l2grad(e)),
    "bim": _Dish(_ALL, lambda e, o: attacks.bim(e, norm=o.norm, steps=o.steps)),
    "pgd": _Dish(_ALL, lambda e, o: attacks.pgd(e, norm=o.norm, steps=o.steps, restarts=o.restarts)),
    "mi_fgsm": _Dish(_ALL, lambda e, o: attacks.mi_fgsm(e, norm=o.norm, steps=o.steps)),
    "adam_pgd": _Dish(_ALL, lambda e, o: attacks.adam_pgd(e, norm=o.norm, steps=o.steps, restarts=o.restarts)),
    "apgd": _Dish(_ALL, lambda e, o: attacks.apgd(e, norm=o.norm, steps=o.steps, restarts=o.restarts)),
    "fhsm": _Dish(("linf",), lambda e, o: attacks.fhsm(e)),
    "l2hess": _Dish(("l2",), lambda e, o: attacks.l2hess(e)),
    "square": _Dish(_ALL, lambda e, o: attacks.square(e, norm=o.norm, queries=o.queries), black_box=True),
    "ensemble": _Dish(_ALL, lambda e, o: attacks.ensemble(e, norm=o.norm, steps=o.steps, queries=o.queries)),
    "trust_region": _Dish(
        _BOTH, lambda e, o: attacks.trust_region(_RADIUS[o.norm], norm=o.norm, steps=o.steps), minimal=True
    ),
    "deepfool": _Dish(_BOTH, lambda e, o: attacks.deepfool(norm=o.norm, steps=o.steps), minimal=True),
    "carlini_wagner": _Dish(("l2",), lambda e, o: attacks.carlini_wagner(steps=o.steps), minimal=True),
}
NAMES = tuple(_MENU)
"""The names, from the cheapest to the dearest; those that know no epsilon last."""


def is_minimal(name: str) -> bool:
    """Tell whether an attack looks for the smallest perturbation and knows no epsilon.

    Args:
      name: One of ``NAMES``.

    Returns:
      True or False.
    """
    return _MENU[name].minimal


def is_black_box(name: str) -> bool:
    """Tell whether an attack follows no gradient.

    Args:
      name: One of ``NAMES``.

    Returns:
      True or False.
    """
    return _MENU[name].black_box


def readers(option: str) -> tuple[str, ...]:
    """List the attacks that an option has an influence on.

    Args:
      option: ``steps``, ``restarts`` or ``queries``.

    Returns:
      Some of ``NAMES``.

    Example:
      >>> readers("queries")
      ('square', 'ensemble')
    """
    return tuple(name for name in NAMES if option in _Noting(_MENU[name]).read)


class _Noting:
    """Options that note which of them a dish is made of. A class, as only its attributes can notice."""

    def __init__(self, dish: _Dish) -> None:
        self.read: set[str] = set()
        self._norm = dish.norms[0]
        dish.make(0.1, self)

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return self._norm if name == "norm" else 10


def make(name: str, epsilon: float, options: Any) -> Attack:
    """Make an attack.

    Args:
      name: One of ``NAMES``.
      epsilon: Its radius; those that know none do not look at it.
      options: ``norm``, ``steps``, ``restarts`` and ``queries``.

    Returns:
      The attack.

    Raises:
      ValueError: If there is no such attack, it does not have that norm, or a number is out of range.

    Example:
      >>> import types
      >>> make("l2grad", 0.1, types.SimpleNamespace(norm="linf"))
      Traceback (most recent call last):
      ValueError: `attack` l2grad has the norms l2, got norm='linf'.
    """
    if name not in _MENU:
        raise ValueError(f"`attack` must name some of {', '.join(NAMES)}, got {name!r}.")
    if options.norm not in _MENU[name].norms:
        raise ValueError(
            f"`attack` {name} has the norms {', '.join(_MENU[name].norms)}, got norm={options.norm!r}."
        )
    return _MENU[name].make(epsilon, options)
