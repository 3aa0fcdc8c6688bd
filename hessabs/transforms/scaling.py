"""Learning rates that follow the batch: a controller's factor, and schedules counted in examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs.batch_size.counting import Count, divide
from hessabs.checks import require
from hessabs.typing import Params


class ScaleByBatchSizeState(NamedTuple):
    """State of ``scale_by_batch_size``."""

    lr_scale: jax.Array  # shape (), float32: the factor of the last update


def scale_by_batch_size() -> optax.GradientTransformationExtraArgs:
    """Scale updates by the factor that a batch-size controller decided.

    ``update`` takes the extra argument ``lr_scale``, the controller's ``state.lr_scale``. Place it after
    momentum, where a learning rate stands, so that a change acts at once on the whole step.

    Returns:
      A ``GradientTransformationExtraArgs``; its state keeps the last factor, which ``hessabs.read`` reads.

    Raises:
      ValueError: From ``update``, if ``lr_scale`` is not given.

    Example:
      >>> tx = optax.chain(scale_by_batch_size(), optax.sgd(0.1))
      >>> w = jnp.ones(1)
      >>> updates, state = tx.update(w, tx.init(w), w, lr_scale=2.0)
      >>> updates
      Array([-0.2], dtype=float32)

    References:
      Goyal et al. (2017), arXiv:1706.02677, the linear scaling rule.
    """

    def update(
        updates: optax.Updates,
        state: ScaleByBatchSizeState,
        params: Params | None = None,
        *,
        lr_scale: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleByBatchSizeState]:
        del state, params, extra_args
        if lr_scale is None:
            raise ValueError(
                "scale_by_batch_size needs `lr_scale`: call update(gradient, state, params, "
                "lr_scale=controller_state.lr_scale)."
            )
        scale = jnp.asarray(lr_scale, jnp.float32)
        return scaled(updates, scale), ScaleByBatchSizeState(scale)

    return optax.GradientTransformationExtraArgs(lambda params: ScaleByBatchSizeState(jnp.float32(1)), update)


class BySamplesState(NamedTuple):
    """State of ``by_samples``."""

    samples: Count  # examples trained on


def by_samples(
    schedule: optax.Schedule, examples_per_step: int, *, flip_sign: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by a learning-rate schedule that counts examples and not updates.

    A schedule written for updates of ``examples_per_step`` examples is read at ``samples / examples_per_step``:
    where the batch grows, it goes on at the pace of the data. ``update`` takes the extra argument
    ``num_examples``, which ``hessabs.accumulate`` passes, or ``batch_size`` where that is not given: the
    examples of this update, which may be traced.

    Args:
      schedule: From a count of steps (a float32 scalar, not always whole) to a learning rate.
      examples_per_step: Examples in a step of the schedule, at least 1: the batch size it was written for.
      flip_sign: Whether to descend, as ``optax.scale_by_learning_rate`` does.

    Raises:
      ValueError: If ``examples_per_step`` is below 1; from ``update``, if neither is given.

    Example:
      >>> tx = by_samples(optax.piecewise_constant_schedule(1.0, {10: 0.1}), 128)
      >>> w = jnp.ones(())
      >>> state = tx.init(w)
      >>> for step in (0, 5, 10):  # of the schedule
      ...     updates, state = tx.update(w, state, batch_size=640)
      >>> round(float(updates), 3)
      -0.1
    """
    require("be at least 1", examples_per_step=examples_per_step)

    def update(
        updates: optax.Updates,
        state: BySamplesState,
        params: Params | None = None,
        *,
        batch_size: Any = None,
        num_examples: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, BySamplesState]:
        del params, extra_args
        examples = batch_size if num_examples is None else num_examples
        if examples is None:
            raise ValueError(
                "by_samples needs `batch_size`, the examples of this update: call "
                "update(gradient, state, params, batch_size=...)."
            )
        # Whole steps apart, so that they stay exact beyond the 2**24 that a float32 can count to.
        whole, rest = divide(state.samples, examples_per_step)
        step = whole.to_float() + rest.to_float() / examples_per_step
        rate = jnp.asarray(schedule(step), float) * (-1 if flip_sign else 1)
        return scaled(updates, rate), BySamplesState(state.samples + examples)

    return optax.GradientTransformationExtraArgs(lambda params: BySamplesState(Count.of(0)), update)


def scaled(updates: optax.Updates, factor: jax.Array) -> optax.Updates:
    """Multiply updates, which keep their dtypes."""
    return jax.tree.map(lambda u: (u * factor).astype(u.dtype), updates)
