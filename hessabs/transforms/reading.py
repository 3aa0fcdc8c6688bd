"""What the batch-size rule in an optimizer has decided, wherever in the optimizer it stands."""

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from hessabs.batch_size import ControllerState
from hessabs.batch_size.noise import NoiseMemory
from hessabs.transforms.adaptive import AdaptiveBatchSizeState
from hessabs.transforms.scaling import BySamplesState, ScaleByBatchSizeState

State = TypeVar("State")

_MAKERS = {
    AdaptiveBatchSizeState: "adaptive_batch_size",
    ScaleByBatchSizeState: "scale_by_batch_size",
    BySamplesState: "by_samples",
}


class Reading(NamedTuple):
    """What an optimizer state says about the batch; without a rule inside, None where nothing knows."""

    samples: Any  # Count: examples trained on so far
    lr_scale: Any  # shape (), float32: of the next update with a rule inside, else of the last one
    batch_size: Any = None  # shape (), int32: examples of the next update
    adversarial_fraction: Any = None  # shape (), float32: of the next update
    eigenvalue: Any = None  # shape (), float32: the last one measured, NaN before the first
    measurement_due: Any = None  # shape (), bool: see the function of this name
    missed: Any = None  # shape (), int32: updates that were to bring a measurement and brought none
    observe_at: Any = None  # Count: examples at which the rule will be called
    controller: ControllerState | None = None  # all of the rule's state

    @property
    def noise_scale(self) -> jax.Array | None:
        """The gradient noise scale in examples, float32, of a rule that averages it; NaN before it is known."""
        average = getattr(getattr(self.controller, "rule", None), "average", None)
        if not isinstance(average, NoiseMemory):
            return None
        known = average.signal > 0
        return jnp.where(known, average.noise / jnp.where(known, average.signal, 1), jnp.nan)


def read(opt_state: optax.OptState) -> Reading:
    """Read what the batch-size rule in an optimizer has decided, and what it was told.

    It takes the time of a look-up and copies nothing. It may be called in jitted code.

    Args:
      opt_state: The state of an optimizer with one ``adaptive_batch_size`` or ``self_measuring_batch_size`` in
        it, however deep; else with a ``scale_by_batch_size``, a ``by_samples`` or both.

    Returns:
      A ``Reading``, whose fields are arrays of the state.

    Raises:
      ValueError: If there is none of them, or two that say the same.

    Example:
      >>> import hessabs
      >>> rule = hessabs.batch_size.timer(32, 128, every=1000)
      >>> tx = optax.chain(optax.scale_by_adam(), hessabs.adaptive_batch_size(rule), optax.scale(-0.1))
      >>> reading = read(tx.init({"w": jnp.ones(3)}))
      >>> int(reading.batch_size), int(reading.samples), int(reading.observe_at)
      (32, 0, 1000)
    """
    found = list(_ours(opt_state))
    rule = _only(found, AdaptiveBatchSizeState)
    if rule is not None:
        made, told = rule.controller, (rule.eigenvalue, rule.measurement_due, rule.missed)
        decided = made.lr_scale, made.batch_size, made.adversarial_fraction
        return Reading(rule.samples, *decided, *told, made.observe_at, made)
    if not found:
        raise ValueError(
            f"The optimizer state has no {', '.join(_MAKERS.values())} in it; it is {_names(opt_state)}."
        )
    scaled, counted = _only(found, ScaleByBatchSizeState), _only(found, BySamplesState)
    return Reading(None if counted is None else counted.samples, None if scaled is None else scaled.lr_scale)


def measurement_due(opt_state: optax.OptState) -> jax.Array:
    """Tell whether the next update is to bring a measurement: an eigenvalue, or gradient statistics.

    With ``hessabs.accumulate`` it is the last micro-batch of an update that brings it.

    Args:
      opt_state: As ``read``, with a rule in it.

    Returns:
      Shape (), bool: for ``if`` in Python, for ``jax.lax.cond`` in jitted code.

    Raises:
      ValueError: As ``read``; if there is no rule.

    Example:
      >>> import hessabs
      >>> rule = hessabs.batch_size.hessian_adaptive(2, 8, measure_every=4)
      >>> tx = hessabs.adaptive_batch_size(rule)
      >>> state = tx.init(None)
      >>> _, later = tx.update(jnp.ones(()), state, eigenvalue=None)
      >>> bool(measurement_due(state)), bool(measurement_due(later))
      (False, True)
    """
    due = read(opt_state).measurement_due
    if due is None:
        raise ValueError("The optimizer state has no adaptive_batch_size in it, whose rule could want one.")
    return due


def _ours(opt_state: Any) -> Iterator[Any]:
    # By hand: to flatten the state would cost more than a step of a small network.
    nodes = [opt_state]
    while nodes:
        node = nodes.pop()
        if type(node) in _MAKERS:
            yield node
        elif isinstance(node, (tuple, list)):
            nodes.extend(node)
        elif isinstance(node, dict):
            nodes.extend(node.values())


def _only(found: list[Any], kind: type[State]) -> State | None:
    states = [state for state in found if type(state) is kind]
    if len(states) > 1:
        raise ValueError(
            f"The optimizer state has {len(states)} {_MAKERS[kind]} in it: read the part with one of them."
        )
    return states[0] if states else None


def _names(opt_state: Any) -> str:
    if type(opt_state) is tuple:
        return f"({', '.join(_names(part) for part in opt_state)})"
    return type(opt_state).__name__
