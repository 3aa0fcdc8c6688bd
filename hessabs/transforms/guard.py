"""A learning rate that the curvature along the optimiser's own step keeps within bounds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs import batch_axis, collectives
from hessabs.checks import require
from hessabs.curvature.along import sharpness_along
from hessabs.transforms.arguments import require_arguments
from hessabs.transforms.scaling import scaled
from hessabs.typing import LossFn, Params

_FASTEST = 2.0  # times the limit before, at most, or its inverse: one noisy batch must not decide
_KEPT = 0.9  # of the averages before: they last about ten measurements


class GuardedLearningRateState(NamedTuple):
    """State of ``guarded_learning_rate``; all float32 scalars but the step."""

    step: jax.Array  # int32: updates so far
    peak: jax.Array  # the largest rate of the schedule so far, without its sign
    limit: jax.Array  # what the rate may be before it decays; inf before the first measurement
    slope: jax.Array  # g'u, averaged; below 0 where a step goes up
    curvature: jax.Array  # u'Hu, averaged
    learning_rate: jax.Array  # of the last update


def guarded_learning_rate(
    learning_rate: optax.ScalarOrSchedule,
    threshold: float = 2.0,
    *,
    every: int = 1,
    examples: int | None = None,
    axis_name: str | None = None,
    flip_sign: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Scale updates by a learning rate, or by less where the curvature along the step does not bear it.

    A step of rate r along the update u changes a quadratic loss by ``-r g'u + r^2 u'Hu / 2``: it is least
    at ``r = g'u / u'Hu`` and back where it was at twice that. The rate is kept below ``threshold * g'u /
    u'Hu``, gradient and Hessian of the batch that the step was made of, both averaged over about ten
    measurements; so with the default steps do not raise the loss of their own batch on average, to second
    order. A rate that is many times too large then trains, where it would diverge; a rate that is right is
    left as it is. When the schedule decays, a rate that was limited decays with it. With the default, momentum
    and batches that are small for the noise of their Hessian can still diverge, for a step that does not raise
    the loss of its own batch may raise that of others: then take a threshold of 1.

    It stands in the place of ``optax.scale_by_learning_rate``, last in a chain, outside ``optax.masked``;
    what comes before must not hold a rate (``optax.trace``, ``optax.scale_by_adam``,
    ``optax.contrib.muon(-1.0)``). Under ``optax.inject_hyperparams`` name ``static_args=("threshold",
    "every", "examples", "axis_name", "flip_sign")``. ``update`` takes the extra arguments ``loss_fn`` and
    ``batch``, those of the gradient (``fit`` gives ``micro_batch``, a loss and a part of the batch, in place
    of both), and ``lr_scale``, a controller's factor on the rate, 1 if it is not given (then without
    ``scale_by_batch_size``). A measurement takes the time of about two gradients of its examples and compiles
    once.

    Measured on an MLP (experiments/results/guard/README.md): the default leaves the best rate as it is; at
    rates far above it a threshold of 1 does better for Muon and where the batch is small, and costs two
    points or three at the best rate of SGD and Adam.

    Args:
      learning_rate: The rate, or a schedule that is called with the count of updates. A step that goes up the
        loss (a rate below 0) is not held back.
      threshold: The largest ``rate * u'Hu / g'u``, above 0: at 1 the loss is least along the step, at 2 it is
        not lower than before.
      every: Updates from one measurement to the next, at least 1. Above 1 it is later to see that a rate is too
        large, and measures under ``lax.cond``, where convolutions are 20 to 50 times slower on the CPU.
      examples: How many of a batch, the first ones, are measured; None for all. They should be in random
        order.
      axis_name: The mapped axis over which the batch is split, or None.
      flip_sign: Whether to descend, as ``optax.scale_by_learning_rate`` does.

    Returns:
      A ``GradientTransformationExtraArgs``, whose state says the ``learning_rate`` of the last update. What is
      measured on an update that is not finite is not counted.

    Raises:
      ValueError: If a setting is out of its range; from ``update``, if params, loss or batch are missing.

    Example:
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2) / 2
      >>> x, w = jnp.array([[2.0, 0.0], [0.0, 2.0]]), jnp.array([1.0, 1.0])  # H = diag(2, 2): 1 is the edge
      >>> tx = guarded_learning_rate(5.0)
      >>> updates, state = tx.update(jax.grad(loss)(w, x), tx.init(w), w, loss_fn=loss, batch=x)
      >>> float(state.learning_rate), updates
      (1.0, Array([-2., -2.], dtype=float32))

    References:
      Roulet et al. (2024), arXiv:2407.06183: rates of ``s g'u / u'Hu``, which on full batches keep the network
      from the edge of stability and are too small. Here they only bound a rate, with the noise of a batch on
      both sides (Andreyev, Beneventano 2024, arXiv:2412.20553).
    """
    require("be positive and finite", threshold=threshold)
    require("be at least 1", every=every, **({} if examples is None else {"examples": examples}))

    def init(params: Params) -> GuardedLearningRateState:
        del params
        peak, limit, *rest = (jnp.full((), x, jnp.float32) for x in (0.0, jnp.inf, 0.0, 0.0, 0.0))
        return GuardedLearningRateState(jnp.zeros((), jnp.int32), peak, limit, *rest)

    def update(
        updates: optax.Updates,
        state: GuardedLearningRateState,
        params: Params | None = None,
        *,
        loss_fn: Any = None,
        batch: Any = None,
        micro_batch: tuple[LossFn, Any] | None = None,
        lr_scale: Any = 1.0,
        **extra_args: Any,
    ) -> tuple[optax.Updates, GuardedLearningRateState]:
        del extra_args
        if micro_batch is not None:
            loss_fn, batch = micro_batch
        require_arguments("guarded_learning_rate", params=params, loss_fn=loss_fn, batch=batch)
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate
        rate = jnp.asarray(rate * lr_scale, jnp.float32)
        sign, rate = jnp.where(rate < 0, -1.0, 1.0), jnp.abs(rate)
        downhill = sign if flip_sign else -sign  # of the step, along an update that has a slope up
        peak = jnp.maximum(state.peak, rate)
        decay = jnp.where(peak > 0, rate / jnp.where(peak > 0, peak, 1), 1)  # a warm-up may begin at 0

        def measure() -> tuple[jax.Array, jax.Array, jax.Array]:
            part = batch if examples is None else batch_axis.map_examples(lambda x: x[:examples], batch)
            place = collectives.own(params, axis_name)
            step = jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params)
            step = collectives.own(step, axis_name)
            found = sharpness_along(loss_fn, place, part, step)
            slope, curvature = collectives.pmean((found.slope, found.curvature), axis_name)
            slope, curvature = downhill * slope.astype(jnp.float32), curvature.astype(jnp.float32)
            finite = jnp.isfinite(slope) & jnp.isfinite(curvature)
            slope, curvature = (
                jnp.where(finite, _KEPT * old + (1 - _KEPT) * new, old)
                for old, new in ((state.slope, slope), (state.curvature, curvature))
            )
            limit = limited(state.limit, threshold, slope, curvature, decay)
            return jnp.where(finite, limit, state.limit), slope, curvature

        if every == 1:
            limit, slope, curvature = measure()
        else:
            kept = state.limit, state.slope, state.curvature
            limit, slope, curvature = jax.lax.cond(state.step % every == 0, measure, lambda: kept)
        used = decay * jnp.minimum(peak, limit)
        new = GuardedLearningRateState(state.step + 1, peak, limit, slope, curvature, sign * used)
        return scaled(updates, -sign * used if flip_sign else sign * used), new

    return optax.GradientTransformationExtraArgs(init, update)


def limited(
    limit: jax.Array, threshold: float, slope: jax.Array, curvature: jax.Array, decay: jax.Array
) -> jax.Array:
    """Move the limit of a rate before decay to where the decayed rate is bearable, and no further.

    What is bearable, ``threshold * slope / curvature``, bounds the decayed rate from above and the undecayed
    limit from below; between them the limit stays, so that the curvature, which rises while a rate decays,
    does not lower it once more.
    """
    bends, downhill = curvature > 0, slope > 0
    bearable = jnp.where(bends, threshold * jnp.maximum(slope, 0) / jnp.where(bends, curvature, 1), jnp.inf)
    moved = jnp.clip(limit, bearable, bearable / jnp.maximum(decay, 1e-6))
    known = jnp.isfinite(limit)
    moved = jnp.where(known, jnp.clip(moved, limit / _FASTEST, limit * _FASTEST), moved)
    # Without a slope down nothing is known of the first limit.
    return jnp.where(known | downhill, moved, limit)
