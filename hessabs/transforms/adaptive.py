"""A batch-size rule as an optax gradient transformation that holds the rule's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs.batch_size import NEVER, Controller, ControllerState, GradientStatistics, Observation
from hessabs.curvature import hessian, power_iteration
from hessabs.typing import LossFn, Params


class AdaptiveBatchSizeState(NamedTuple):
    """State of ``adaptive_batch_size`` and ``self_measuring_batch_size``."""

    samples: jax.Array  # shape (), int32: examples trained on
    controller: ControllerState  # its `batch_size` is that of the next update
    eigenvector: Any  # like the params: where the next measurement starts; () where none is made here


def adaptive_batch_size(controller: Controller) -> optax.GradientTransformationExtraArgs:
    """Hold a batch-size rule, and scale updates by its learning-rate factor.

    The incoming updates are those of a batch of ``optax.tree.get(state, "batch_size")`` examples. They are
    scaled by the factor that the rule had decided for it; the count of examples goes up by the batch; then the
    rule is called if it is time, and what it decides holds from the next update on. Place it after momentum,
    where a learning rate stands. ``optax.tree.get`` reads ``"batch_size"``, ``"lr_scale"``,
    ``"adversarial_fraction"``, and ``"observe_at"`` and ``"measure"``: whether a measurement is asked for once
    ``"samples"`` reaches that count.

    ``update`` takes one of these extra arguments, and ignores others:

    * ``eigenvalue``, with ``standard_error`` if it has one;
    * ``gradient_statistics``, as ``hessabs.accumulate(..., statistics=True)`` passes them;
    * ``observation``: an ``Observation``, whose count of examples then replaces the state's own.

    Where a measurement is due and none of them is given, the rule is not told one, and asks again at the next
    update.

    Args:
      controller: The rule.

    Returns:
      A ``GradientTransformationExtraArgs``.

    Example:
      >>> import hessabs
      >>> rule = hessabs.batch_size.hessian_adaptive(2, 8, measure_every=4)
      >>> tx = optax.chain(adaptive_batch_size(rule), optax.sgd(0.1))
      >>> w = jnp.ones(())
      >>> state = tx.init(w)
      >>> for eigenvalue in (9.0, 8.0, 7.0, 4.0):
      ...     updates, state = tx.update(w, state, w, eigenvalue=eigenvalue)
      >>> int(optax.tree.get(state, "batch_size")), float(optax.tree.get(state, "lr_scale"))
      (4, 2.0)
    """

    def init(params: Params) -> AdaptiveBatchSizeState:
        del params
        return AdaptiveBatchSizeState(jnp.zeros((), jnp.int32), controller.init(), ())

    def update(
        updates: optax.Updates,
        state: AdaptiveBatchSizeState,
        params: Params | None = None,
        *,
        observation: Observation | None = None,
        eigenvalue: Any = None,
        standard_error: Any = None,
        gradient_statistics: GradientStatistics | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaptiveBatchSizeState]:
        del params, extra_args
        samples = _count(state)
        if observation is None:
            observation = Observation(samples, eigenvalue, standard_error, gradient_statistics)
        else:
            samples = jnp.asarray(observation.samples, jnp.int32)
        new = _advance(controller, observation, state.controller)
        return _scale(updates, state), AdaptiveBatchSizeState(samples, new, ())

    return optax.GradientTransformationExtraArgs(init, update)


def self_measuring_batch_size(
    controller: Controller,
    *,
    key: jax.Array,
    max_iters: int = 10,
    rtol: float = 1e-2,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Hold a batch-size rule that measures its own eigenvalue, where the rule asks for one.

    As ``adaptive_batch_size``, but with no measurement to pass: under ``lax.cond``, so at the updates that need
    it alone, the top eigenvalue of the Hessian of ``loss_fn(params, batch)`` is measured, from the
    eigenvector of the last measurement. For GPU and TPU: on the CPU, convolutions inside ``lax.cond`` run 20 to
    50 times slower than outside; there measure outside and use ``adaptive_batch_size``.

    ``update`` takes the extra arguments ``loss_fn`` and ``batch`` (required; batch norm in evaluation mode),
    and ignores others. ``batch`` may be another one than the gradient's: a fixed one makes eigenvalues
    comparable. Place it outside ``optax.masked``, ``optax.partition`` and ``shard_map``'s split params.

    Args:
      controller: The rule, one that measures an eigenvalue of the whole Hessian.
      key: Random key that draws the first start vector.
      max_iters: Most products per measurement, at least 1.
      rtol: Relative residual at which a measurement is good enough.
      axis_name: The mapped axis over which ``batch`` is split, or None.

    Returns:
      A ``GradientTransformationExtraArgs``.

    Raises:
      ValueError: If the rule measures something else; from ``update``, if params, loss or batch are missing.

    Example:
      >>> import hessabs
      >>> rule = hessabs.batch_size.stability_limited(2, 8, lr=0.1, measure_every=2)
      >>> tx = optax.chain(self_measuring_batch_size(rule, key=jax.random.key(0)), optax.sgd(0.1))
      >>> loss = lambda w, batch: 2.5 * jnp.sum(w**2)  # eigenvalue 5
      >>> w = jnp.ones(3)
      >>> updates, state = tx.update(w, tx.init(w), w, loss_fn=loss, batch=None)
      >>> int(optax.tree.get(state, "batch_size"))  # 5 * 0.1 * 2 < 2 <= 5 * 0.1 * 4
      4
    """
    if controller.measures not in ("eigenvalue", "nothing"):
        raise ValueError(
            "self_measuring_batch_size measures an eigenvalue of the whole Hessian, got a rule that measures "
            f"{controller.measures!r}; use adaptive_batch_size."
        )
    if max_iters < 1:
        raise ValueError(f"`max_iters` must be at least 1, got {max_iters}.")

    def init(params: Params) -> AdaptiveBatchSizeState:
        start = optax.tree.random_like(key, params, jax.random.normal)
        return AdaptiveBatchSizeState(jnp.zeros((), jnp.int32), controller.init(), start)

    def update(
        updates: optax.Updates,
        state: AdaptiveBatchSizeState,
        params: Params | None = None,
        *,
        loss_fn: LossFn | None = None,
        batch: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaptiveBatchSizeState]:
        del extra_args
        if loss_fn is None or params is None:
            raise ValueError(
                "self_measuring_batch_size needs params and `loss_fn`: call "
                "update(gradient, state, params, loss_fn=..., batch=...)."
            )
        samples = _count(state)

        def measure(start: Params) -> tuple[jax.Array, Params]:
            matvec = hessian(loss_fn, params, batch, axis_name=axis_name)
            result = power_iteration(matvec, start, max_iters=max_iters, rtol=rtol, loop="device")
            # A vector that is not finite would spoil every later measurement.
            finite = jnp.isfinite(result.residual)
            vector = jax.tree.map(lambda n, o: jnp.where(finite, n, o), result.eigenvector, start)
            return result.eigenvalue.astype(jnp.float32), vector

        due = state.controller.measure & (samples >= state.controller.observe_at)
        eigenvalue, eigenvector = jax.lax.cond(
            due, measure, lambda start: (jnp.float32(jnp.nan), start), state.eigenvector
        )
        new = _advance(controller, Observation(samples, eigenvalue), state.controller)
        return _scale(updates, state), AdaptiveBatchSizeState(samples, new, eigenvector)

    return optax.GradientTransformationExtraArgs(init, update)


def _count(state: AdaptiveBatchSizeState) -> jax.Array:
    # Stops below NEVER, where an int32 would turn negative.
    return state.samples + jnp.minimum(state.controller.batch_size, NEVER - 1 - state.samples)


def _advance(controller: Controller, observation: Observation, state: ControllerState) -> ControllerState:
    given = observation.gradient if controller.measures == "gradient" else observation.eigenvalue
    told = state
    if given is None:
        nothing = jnp.float32(jnp.nan)
        statistics = GradientStatistics(1, 1, nothing, nothing, nothing)
        observation = observation._replace(eigenvalue=nothing, gradient=statistics)
        told = state._replace(measure=jnp.zeros((), bool))
    due = jnp.asarray(observation.samples, jnp.int32) >= state.observe_at
    new = controller.update(observation, told)
    return jax.tree.map(lambda n, o: jnp.where(due, n, o), new, state)


def _scale(updates: optax.Updates, state: AdaptiveBatchSizeState) -> optax.Updates:
    scale = state.controller.lr_scale
    return jax.tree.map(lambda u: (u * scale).astype(u.dtype), updates)
