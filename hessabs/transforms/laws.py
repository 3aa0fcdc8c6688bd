"""What the hyperparameters of an optimiser become when its batch grows: pure functions of numbers."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.batch_size import Coupling
from hessabs.checks import require_one_of

Form = Literal["half_life", "sde"]
"""How a moving average follows: by its half-life in examples, or to first order, with epsilon."""

Law: TypeAlias = Callable[[Any, Any], Any]
"""``law(value, growth) -> value``, of numbers that may be traced."""

# By the names that optax gives them.
_DECAYS = ("b1", "b2", "b3", "beta", "decay", "rho", "ema_decay", "adam_b1", "adam_b2")
_RATES = ("learning_rate", "adam_learning_rate")
_WEIGHT_DECAYS = ("weight_decay", "adam_weight_decay")
_EPSILONS = ("eps", "epsilon")
_POWERS: dict[Coupling, float] = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def follow_batch(
    hyperparameters: Mapping[str, Any], growth: Any, *, lr_coupling: Coupling = "sqrt", form: Form = "half_life"
) -> dict[str, Any]:
    """Give hyperparameters the values that fit a batch of ``growth`` times the size they were chosen for.

    Hyperparameters count time in updates, and an update of a larger batch stands for more examples. With a
    growth of k:

    * a decay beta of a moving average (``b1``, ``b2``, ``decay``, ...) becomes ``beta**k``: its half-life in
      examples stays. The SDE form ``1 - k (1 - beta)``, at least 0, is the same to first order;
    * ``learning_rate`` is multiplied by k**p: p is 1 for the linear coupling, 1/2 for the root, 0 for none;
    * ``weight_decay``, which optax multiplies by the rate, is multiplied by k**(1 - p): what the params forget
      by example stays (to first order);
    * ``eps`` and ``epsilon`` are divided by the root of k, ``eps_root`` by k, in the SDE form alone: where
      noise makes the second moment, that shrinks as the batch grows.

    Others stay as they are, ``momentum`` too: optax sums with it, so a smaller one alone would make smaller
    steps (``by_examples`` makes up for that). The square root is the advice for whatever normalises its
    gradient (Adam and its kin, RMSprop, Lion, LAMB, Muon), the linear coupling for SGD.

    Args:
      hyperparameters: By the names of optax; scalars, which may be traced.
      growth: k, the batch over that which the values were chosen for, above 0; may be traced.
      lr_coupling: ``"linear"``, ``"sqrt"`` or ``"none"``: how the learning rate follows the batch.
      form: ``"half_life"`` or ``"sde"``.

    Returns:
      The values for the larger batch, Python floats where nothing is traced.

    Raises:
      ValueError: If coupling or form is unknown, or the growth (not traced) is not above 0.

    Example:
      >>> adamw = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
      >>> {name: float(f"{value:.4g}") for name, value in follow_batch(adamw, 4).items()}
      {'learning_rate': 0.002, 'b1': 0.6561, 'b2': 0.996, 'eps': 1e-08, 'weight_decay': 0.2}
      >>> {name: float(f"{value:.4g}") for name, value in follow_batch(adamw, 4, form="sde").items()}
      {'learning_rate': 0.002, 'b1': 0.6, 'b2': 0.996, 'eps': 5e-09, 'weight_decay': 0.2}

    References:
      Malladi et al. (2022), arXiv:2205.10287: the square root and the SDE form. Marek et al. (2025),
      arXiv:2507.07101: half-lives in tokens. Busbridge et al. (2023), arXiv:2307.13813: ``beta**k`` for an
      average of params. Bergsma et al. (2025), arXiv:2505.13738: weight decay.
    """
    if not trees.is_traced(growth) and not growth > 0:
        raise ValueError(f"`growth` must be above 0, got {growth}.")
    laws = laws_of(lr_coupling, form)
    return {
        name: laws[name](value, growth) if name in laws else value for name, value in hyperparameters.items()
    }


def laws_of(lr_coupling: Coupling, form: Form) -> dict[str, Law]:
    """Return the law of each hyperparameter that ``follow_batch`` knows, by its name."""
    require_one_of(get_args(Coupling), lr_coupling=lr_coupling)
    require_one_of(get_args(Form), form=form)
    power = _POWERS[lr_coupling]
    laws = {
        **dict.fromkeys(_DECAYS, _half_life if form == "half_life" else _first_order),
        **dict.fromkeys(_RATES, _times(power)),
        **dict.fromkeys(_WEIGHT_DECAYS, _times(1 - power)),
        "weight_decay_rate": _times(1.0),  # of Adafactor, which does not multiply it by the rate
    }
    if form == "sde":
        laws |= {**dict.fromkeys(_EPSILONS, _times(-0.5)), "eps_root": _times(-1.0)}
    return laws


def is_decay(name: str) -> bool:
    """Tell whether a hyperparameter, by its name in optax, is the decay of a moving average."""
    return name in _DECAYS


def _half_life(value: Any, growth: Any) -> Any:
    return value**growth


def _first_order(value: Any, growth: Any) -> Any:
    left = 1 - growth * (1 - value)
    return jnp.maximum(left, 0) if trees.is_traced(left) or isinstance(left, jax.Array) else max(left, 0.0)


def _times(power: float) -> Law:
    return lambda value, growth: value * growth**power
