"""What attacks refuse, each in one line, before anything is compiled."""

from typing import Any

import jax
import numpy as np

from hessabs import trees
from hessabs.attacks import losses
from hessabs.attacks.inputs import get_inputs
from hessabs.attacks.norms import Bounds
from hessabs.typing import LossFn, Params


def check_epsilon(epsilon: float) -> None:
    """Raise unless epsilon is finite and at least 0.

    Args:
      epsilon: Size of a perturbation, in units of the batch.

    Raises:
      ValueError: If it is not.
    """
    if not (0 <= epsilon < float("inf")):
        raise ValueError(f"`epsilon` must be finite and at least 0, got {epsilon}.")


def check_bounds(bounds: Bounds) -> None:
    """Raise unless the bounds are None or in order.

    Args:
      bounds: Lowest and highest value of the inputs, in units of the batch, or None.

    Raises:
      ValueError: If the lowest is not below the highest.
    """
    if bounds is not None and not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (lowest, highest), got {bounds}.")


def check_count(name: str, count: int) -> None:
    """Raise unless a count is at least 1.

    Args:
      name: Of the parameter, for the error.
      count: Its value.

    Raises:
      ValueError: If it is below 1.
    """
    if count < 1:
        raise ValueError(f"`{name}` must be at least 1, got {count}.")


def check_positive(name: str, value: float | None) -> None:
    """Raise unless a number is None, or finite and above 0.

    Args:
      name: Of the parameter, for the error.
      value: Its value, or None.

    Raises:
      ValueError: If it is neither.
    """
    if value is not None and not (0 < value < float("inf")):
        raise ValueError(f"`{name}` must be finite and above 0, got {value}.")


def checked_inputs(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int, bounds: Bounds
) -> jax.Array:
    """Take the inputs out of a batch that an attack can work with.

    Values are looked at unless they are traced: a traced value never raises.

    Args:
      loss_fn: The loss; one that carries its logits says where the labels are.
      params: What the loss takes.
      batch: The batch.
      inputs_key: Key, field name or index of the inputs.
      bounds: (lowest, highest) that the inputs must lie in, or None.

    Returns:
      The inputs.

    Raises:
      ValueError: If the batch has no such inputs, they are not finite or outside the bounds, or labels or
        targets are missing or out of range.
    """
    inputs = get_inputs(batch, inputs_key)
    if not trees.is_traced(inputs):
        values = np.asarray(inputs, np.float32) if inputs.dtype.itemsize < 4 else np.asarray(inputs)
        if not np.isfinite(values).all():
            raise ValueError(f"The inputs at key {inputs_key!r} hold values that are not finite (NaN or inf).")
        if bounds is not None and values.size:
            low, high = float(values.min()), float(values.max())
            if low < np.float32(bounds[0]) or high > np.float32(bounds[1]):
                raise ValueError(
                    f"The inputs at key {inputs_key!r} lie in [{low:g}, {high:g}], outside `bounds` {bounds}; "
                    "pass the bounds of the batch."
                )
    if not trees.is_traced(params):
        losses.check_classes(loss_fn, params, batch)
    elif losses.carries_logits(loss_fn):
        losses.classes_of(losses.parts(loss_fn)[1], batch)
    return inputs


def checked_key(key: jax.Array | None, why: str) -> jax.Array:
    """Return a random key, or raise when there is none.

    Args:
      key: The key, or None.
      why: What needs it, the subject of the error.

    Returns:
      The key.

    Raises:
      ValueError: If it is None.
    """
    if key is None:
        raise ValueError(f"{why} needs a random key: pass `key=jax.random.key(seed)`.")
    return key
