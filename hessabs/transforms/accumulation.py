"""Gradient accumulation whose number of micro-batches may change at any time."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs import trees
from hessabs.batch_size import GradientStatistics
from hessabs.typing import Params


class AccumulateState(NamedTuple):
    """State of ``accumulate``."""

    num_accumulated: jax.Array  # shape (), int32: micro-batches in `total`
    updated: jax.Array  # shape (), bool: whether the last call made an update
    weight: jax.Array  # shape (), float32: sum of their weights
    square: jax.Array  # shape (), float32: sum of weight * ||gradient||^2, with `statistics`
    total: Params  # sum of weight * gradient, at least float32
    inner_state: optax.OptState


def accumulate(
    inner: optax.GradientTransformation,
    *,
    num_micro_batches: int | None = None,
    micro_batch_size: int | None = None,
    statistics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Accumulate the gradients of micro-batches and update once for all of them.

    The update of ``inner`` gets the weighted mean of the gradients since the last one and runs at the boundary
    alone (under ``lax.cond``); in between the updates are zero and its state stays. The boundary is the call
    by which as many micro-batches have been accumulated as are asked for in that very call: if the number
    shrinks half-way, the update comes at once, with all that was accumulated.

    ``update`` takes the extra arguments ``num_micro_batches`` (an int32 that may be traced and change from
    call to call) and ``weight`` (of this micro-batch's mean gradient; 1 if not given, its number of examples
    where micro-batches differ in size). All others are passed to ``inner``: those of the last micro-batch, so
    ``adversarial_gradient`` stands before ``accumulate`` and not in it.

    Args:
      inner: The transformation to update, usually a whole optimizer.
      num_micro_batches: How many to accumulate where the extra argument is not given, at least 1.
      micro_batch_size: Examples in a micro-batch. The number to accumulate is then the ``batch_size`` of an
        ``adaptive_batch_size`` in ``inner``, divided by this and rounded up.
      statistics: Whether to pass ``gradient_statistics`` to ``inner``, for a rule that reads the noise of the
        gradient. Costs one norm for each micro-batch, needs ``micro_batch_size``, and takes all micro-batches
        for equally large.

    Returns:
      A ``GradientTransformationExtraArgs``. ``state.updated`` tells whether the last call made an update.

    Raises:
      ValueError: If a number is below 1, or both are given; from ``update``, if none says how many.

    Example:
      >>> tx = accumulate(optax.sgd(1.0))
      >>> w = jnp.zeros(())
      >>> state = tx.init(w)
      >>> for gradient, k in ((1.0, 4), (2.0, 4), (6.0, 2)):
      ...     updates, state = tx.update(jnp.asarray(gradient), state, w, num_micro_batches=k)
      ...     print(float(updates))
      0.0
      0.0
      -3.0
    """
    for name, value in (("num_micro_batches", num_micro_batches), ("micro_batch_size", micro_batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}.")
    if num_micro_batches is not None and micro_batch_size is not None:
        raise ValueError(
            "`num_micro_batches` and `micro_batch_size` both say how many to accumulate, "
            f"got {num_micro_batches} and {micro_batch_size}; give one."
        )
    if statistics and micro_batch_size is None:
        raise ValueError("`statistics` needs `micro_batch_size`, the examples of each part.")
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> AccumulateState:
        return AccumulateState(
            num_accumulated=jnp.zeros((), jnp.int32),
            updated=jnp.zeros((), bool),
            weight=jnp.zeros((), jnp.float32),
            square=jnp.zeros((), jnp.float32),
            total=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32)), params),
            inner_state=inner.init(params),
        )

    def update(
        updates: optax.Updates,
        state: AccumulateState,
        params: Params | None = None,
        *,
        num_micro_batches: Any = num_micro_batches,
        weight: Any = 1.0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateState]:
        wanted = num_micro_batches
        if wanted is None and micro_batch_size is not None:
            wanted = -(-optax.tree.get(state.inner_state, "batch_size") // micro_batch_size)
        if wanted is None:
            raise ValueError(
                "accumulate needs to know how many micro-batches make an update: call "
                "update(gradient, state, params, num_micro_batches=...), or give `num_micro_batches` or "
                "`micro_batch_size` when it is made."
            )
        weight = jnp.asarray(weight, jnp.float32)
        count = state.num_accumulated + 1
        total_weight = state.weight + weight
        total = jax.tree.map(lambda t, g: t + weight * g.astype(t.dtype), state.total, updates)
        square = state.square + weight * trees.vdot(updates, updates) if statistics else state.square

        def complete(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            scale = trees.safe_inverse(total_weight)
            mean = jax.tree.map(lambda t, g: (t * scale).astype(g.dtype), total, updates)
            extra = dict(extra_args)
            if statistics:
                extra["gradient_statistics"] = GradientStatistics(
                    jnp.asarray(micro_batch_size, jnp.int32),
                    count,
                    square * scale,
                    trees.vdot(mean, mean).astype(jnp.float32),
                )
            new_updates, new_state = inner.update(mean, inner_state, params, **extra)
            return new_updates, jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), new_state, inner_state)

        shapes, _ = jax.eval_shape(complete, state.inner_state)

        def wait(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), inner_state

        boundary = count >= wanted
        new_updates, inner_state = jax.lax.cond(boundary, complete, wait, state.inner_state)
        return new_updates, AccumulateState(
            num_accumulated=jnp.where(boundary, 0, count),
            updated=jnp.asarray(boundary),
            weight=jnp.where(boundary, 0, total_weight),
            square=jnp.where(boundary, 0, square),
            total=jax.tree.map(lambda t: jnp.where(boundary, 0, t), total),
            inner_state=inner_state,
        )

    return optax.GradientTransformationExtraArgs(init, update)
