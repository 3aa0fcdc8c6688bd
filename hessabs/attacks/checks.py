"""What attacks refuse, each in one line, before anything is compiled."""

import math
import warnings
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees
from hessabs.attacks.losses.carrying import carries_logits, classes_of, parts
from hessabs.attacks.losses.examples import check_classes
from hessabs.attacks.norms import Ball, Bounds, Norm
from hessabs.checks import number, require_one_of
from hessabs.inputs import get_inputs
from hessabs.typing import LossFn, Params


def checked_ball(epsilon: float, norm: Norm, bounds: Bounds, allowed: tuple[str, ...] = get_args(Norm)) -> Ball:
    """Make a ball to attack in, or raise where epsilon, the norm and the bounds make none.

    Warns if the L-infinity ball holds all that lies between the bounds, as 8 in the place of 8 / 255.
    """
    require_one_of(allowed, norm=norm)
    if np.ndim(epsilon) > 0:
        raise ValueError(
            f"`epsilon` must be one number for all examples, got shape {np.shape(epsilon)}: attack the "
            "examples of each epsilon by themselves."
        )
    epsilon, bounds = number("be at least 0 and finite", epsilon=epsilon), checked_bounds(bounds)
    if norm == "linf" and bounds is not None and epsilon > bounds[1] - bounds[0]:
        warnings.warn(
            f"`epsilon` {epsilon:g} exceeds the width of `bounds` {bounds}: every input is allowed. Give it in "
            "the units of the inputs, 8 / 255 for eight grey levels of images in [0, 1].",
            stacklevel=3,
        )
    return Ball(epsilon, trees.Static((norm, bounds)))


def checked_bounds(bounds: Bounds) -> Bounds:
    """Return bounds as Python floats, or None where there are none, or raise unless they are in order."""
    if bounds is None:
        return None
    if np.shape(bounds) != (2,) or isinstance(bounds, (np.ndarray, jax.Array)):
        raise ValueError(
            f"`bounds` must be two numbers, (lowest, highest), got {bounds!r}: the same for all entries. Give "
            "inputs of one range, (0, 1) say, and let the network normalise each channel."
        )
    if not bounds[0] < bounds[1]:
        raise ValueError(f"`bounds` must be (lowest, highest), got {bounds}.")
    return float(bounds[0]), float(bounds[1])


def checked_inputs(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int, bounds: Bounds, *, steps: int = 0
) -> jax.Array:
    """Take the inputs out of a batch, or raise when an attack cannot work with it: inputs, labels or targets.

    Values are looked at unless they are traced: a traced value never raises. Warns where an attack of so many
    ``steps`` along the gradient would lose some of them in rounding, or the gradient itself.
    """
    inputs = get_inputs(batch, inputs_key)
    if lost := _lost(inputs.dtype, steps):
        warnings.warn(
            f"The inputs at key {inputs_key!r} are {inputs.dtype}: {lost}. The attack is weaker than it looks.",
            stacklevel=3,
        )
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(
            f"The batch has no examples, got inputs of shape {inputs.shape} at key {inputs_key!r}."
        )
    if not trees.is_traced(inputs):
        values = np.asarray(inputs, np.float32) if inputs.dtype.itemsize < 4 else np.asarray(inputs)
        if not np.isfinite(values).all():
            raise ValueError(f"The inputs at key {inputs_key!r} hold values that are not finite (NaN or inf).")
        if bounds is not None:
            low, high = float(values.min()), float(values.max())
            if low < np.float32(bounds[0]) or high > np.float32(bounds[1]):
                raise ValueError(
                    f"The inputs at key {inputs_key!r} lie in [{low:g}, {high:g}], outside `bounds` {bounds}; "
                    "pass the bounds of the batch."
                )
    if carries_logits(loss_fn) and (read := parts(loss_fn)[1].inputs_key) != inputs_key:
        raise ValueError(
            f"The attack moves the inputs at key {inputs_key!r}, and the loss reads those at {read!r}: pass "
            "the same `inputs_key` to both."
        )
    if not trees.is_traced(params):
        check_classes(loss_fn, params, batch)
    elif carries_logits(loss_fn):
        classes_of(parts(loss_fn)[1], batch)
    return inputs


def _lost(dtype: np.dtype, steps: int) -> str | None:
    # What so many steps lose in the dtype of the inputs, which is that of the gradient, too, and what to do.
    smallest = float(jnp.finfo(dtype).smallest_subnormal)
    if steps > 0 and smallest > float(jnp.finfo(jnp.bfloat16).tiny):
        return (
            f"a gradient below {smallest:.0e} is 0 in it, that of the cross-entropy where the label is ahead "
            f"by about {-math.log(smallest):.0f}, and what steps add is rounded. Give float32 inputs to a "
            "network that computes in float32 or bfloat16"
        )
    if steps > 1 and dtype.itemsize < 4:
        return (
            "steps of less than half of its last digit vanish. Give float32 inputs; let the network make them "
            f"{dtype}"
        )
    return None


def checked_key(key: jax.Array | None, why: str) -> jax.Array:
    """Return a random key, or raise when there is none; ``why`` is the subject of the error."""
    if key is None:
        raise ValueError(f"{why} needs a random key: pass `key=jax.random.key(seed)`.")
    check_key(key)
    return key


def check_key(key: Any) -> None:
    """Raise unless a random key is one, or None."""
    dtype = getattr(key, "dtype", None)
    is_key = dtype is not None and (
        jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and key.ndim == 1)
    )
    if key is not None and not is_key:
        raise ValueError(f"`key` must be a random key, got {key!r}: pass `key=jax.random.key(seed)`.")
