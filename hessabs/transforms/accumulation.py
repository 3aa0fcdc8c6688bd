"""Gradient accumulation whose number of micro-batches may change at any time."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs import trees
from hessabs.batch_size import GradientStatistics
from hessabs.transforms.adaptive import AdaptiveBatchSizeState
from hessabs.typing import Params


class AccumulateState(NamedTuple):
    """State of ``accumulate``."""

    num_accumulated: jax.Array  # shape (), int32: micro-batches since the last boundary, absent ones too
    num_present: jax.Array  # shape (), int32: those whose weight is not 0, the ones in `total`
    num_examples: jax.Array  # shape (), int32: examples in those, where their number is known
    updated: jax.Array  # shape (), bool: whether the last call made an update
    weight: jax.Array  # shape (), float32, float64 where a param is: sum of their weights
    square: jax.Array  # shape (), float32: sum of weight * ||gradient||^2, with `statistics`
    total: Params  # sum of weight * gradient, at least float32, sharded like the params
    inner_state: optax.OptState


def accumulate(
    inner: optax.GradientTransformation,
    *,
    num_micro_batches: int | None = None,
    micro_batch_size: int | None = None,
    statistics: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Accumulate the gradients of micro-batches and update once for all of them.

    ``inner`` gets the weighted mean of the gradients since the last update and runs at the boundary alone
    (under ``lax.cond``); in between the updates are zero and its state stays. The boundary is the call by which
    as many micro-batches have been accumulated as are asked for in that very call: if the number shrinks
    half-way, the update comes at once, with all that was accumulated.

    ``update`` takes the extra arguments

    * ``num_micro_batches``: an int32 that may be traced and change; a traced number below 1 acts as 1;
    * ``weight`` of this micro-batch's mean gradient: 1 if not given, its number of examples (or of tokens that
      count) where micro-batches differ in size. A micro-batch of weight 0 is absent, whatever its gradient is,
      NaN too: it counts to the boundary alone. Where all are absent ``inner`` does not run and its state stays;
    * ``num_examples`` in this micro-batch, at every call or at none: ``micro_batch_size`` if not given; fewer
      than 2**31 in an update.

    All others are passed to ``inner``: those of the last micro-batch, so ``adversarial_gradient`` stands before
    ``accumulate``. ``inner`` also gets ``num_examples``, all those in its update (none of absent
    micro-batches).

    Args:
      inner: The transformation to update, usually a whole optimizer.
      num_micro_batches: How many to accumulate where the extra argument is not given, at least 1.
      micro_batch_size: Examples in a micro-batch. The number to accumulate, where nothing else says it, is then
        the batch size of the ``adaptive_batch_size`` in ``inner``, divided by this and rounded up.
      statistics: Whether to pass ``gradient_statistics`` to ``inner``, for a rule that reads the noise of the
        gradient. Costs one norm for each micro-batch, and takes those that are present for equally large.

    Returns:
      A ``GradientTransformationExtraArgs``. ``state.updated`` tells whether the last call made an update.

    Raises:
      ValueError: If a number is below 1, or both are given; from ``update``, if none says how many, or two
        rules do.

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
    _check("num_micro_batches", num_micro_batches)
    _check("micro_batch_size", micro_batch_size)
    if num_micro_batches is not None and micro_batch_size is not None:
        raise ValueError(
            "`num_micro_batches` and `micro_batch_size` both say how many to accumulate, "
            f"got {num_micro_batches} and {micro_batch_size}; give one."
        )
    if statistics and micro_batch_size is None:
        raise ValueError("`statistics` needs `micro_batch_size`, the examples of each part.")
    inner = optax.with_extra_args_support(inner)

    def init(params: Params) -> AccumulateState:
        zero = functools.partial(jnp.zeros, ())  # an array each, so that the state may be donated
        counts = zero(jnp.int32), zero(jnp.int32), zero(jnp.int32)
        total = jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.promote_types(jnp.result_type(p), jnp.float32)), params
        )
        widest = jnp.result_type(jnp.float32, *(leaf.real.dtype for leaf in jax.tree.leaves(total)))
        return AccumulateState(*counts, zero(bool), zero(widest), zero(jnp.float32), total, inner.init(params))

    def update(
        updates: optax.Updates,
        state: AccumulateState,
        params: Params | None = None,
        *,
        num_micro_batches: Any = num_micro_batches,
        weight: Any = 1.0,
        num_examples: Any = micro_batch_size,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AccumulateState]:
        _check("num_micro_batches", num_micro_batches)
        wanted = num_micro_batches
        if wanted is None:
            wanted = _num_micro_batches(state.inner_state, micro_batch_size)
        weight = jnp.asarray(weight, state.weight.dtype)
        updates = jax.tree.map(jnp.asarray, updates)
        # Not "above 0": a weight of NaN is a mistake and has to show.
        present = weight != 0
        added = 0 if num_examples is None else jnp.where(present, jnp.asarray(num_examples, jnp.int32), 0)
        squared = jnp.zeros((), jnp.float32)
        if statistics:
            squared = jnp.where(present, weight * trees.vdot(updates, updates), 0).astype(jnp.float32)
        sums = AccumulateState(
            num_accumulated=state.num_accumulated + 1,
            num_present=state.num_present + present,
            num_examples=state.num_examples + added,
            updated=state.updated,
            weight=state.weight + weight,
            square=state.square + squared,
            total=jax.tree.map(
                lambda t, g: t + jnp.where(present, weight * g.astype(t.dtype), 0), state.total, updates
            ),
            inner_state=(),
        )

        def complete(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            scale = trees.safe_inverse(sums.weight)
            mean = jax.tree.map(lambda t, g: (t * scale).astype(g.dtype), sums.total, updates)
            extra = dict(extra_args)
            if num_examples is not None:
                extra["num_examples"] = sums.num_examples
            if statistics and micro_batch_size is not None:
                squares = (x.astype(jnp.float32) for x in (sums.square * scale, trees.vdot(mean, mean)))
                extra["gradient_statistics"] = GradientStatistics(micro_batch_size, sums.num_present, *squares)
            new_updates, new_state = inner.update(mean, inner_state, params, **extra)
            return new_updates, jax.tree.map(lambda n, o: jnp.asarray(n, o.dtype), new_state, inner_state)

        shapes, _ = jax.eval_shape(complete, state.inner_state)

        def wait(inner_state: optax.OptState) -> tuple[optax.Updates, optax.OptState]:
            # Like the shapes, which know how they are sharded: both branches must agree.
            return jax.tree.map(jnp.zeros_like, shapes), inner_state

        boundary = sums.num_accumulated >= wanted
        updated = boundary & (sums.num_present > 0)
        new_updates, inner_state = jax.lax.cond(updated, complete, wait, state.inner_state)
        left = jax.tree.map(lambda x: jnp.where(boundary, 0, x), sums)
        return new_updates, left._replace(updated=updated, inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _check(name: str, value: Any) -> None:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"`{name}` must be at least 1, got {value}.")


def _num_micro_batches(inner_state: optax.OptState, micro_batch_size: int | None) -> jax.Array:
    """Return how many micro-batches make the batch that the rule in ``inner`` asks for."""
    if micro_batch_size is None:
        raise ValueError(
            "accumulate needs to know how many micro-batches make an update: call "
            "update(gradient, state, params, num_micro_batches=...), or give `num_micro_batches` or "
            "`micro_batch_size` when it is made."
        )
    rules = trees.nodes(inner_state, AdaptiveBatchSizeState)
    if len(rules) != 1:
        raise ValueError(
            f"accumulate(..., micro_batch_size={micro_batch_size}) reads the batch size from a rule in `inner` "
            f"and finds {len(rules) or 'no'} adaptive_batch_size there: put one there, or call "
            "update(gradient, state, params, num_micro_batches=...)."
        )
    return -(-rules[0].controller.batch_size // micro_batch_size)
