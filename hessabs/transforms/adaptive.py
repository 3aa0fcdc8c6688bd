"""A batch-size rule as an optax gradient transformation that holds the rule's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hessabs import trees
from hessabs.batch_size import Controller, ControllerState, Count, GradientStatistics, Observation
from hessabs.batch_size.statistics import noise_and_signal
from hessabs.checks import require
from hessabs.curvature import hessian, power_iteration
from hessabs.transforms.arguments import require_arguments
from hessabs.transforms.scaling import scaled
from hessabs.typing import Params

_ABSENT = object()


class AdaptiveBatchSizeState(NamedTuple):
    """State of ``adaptive_batch_size`` and ``self_measuring_batch_size``; ``hessabs.read`` finds it."""

    samples: Count  # examples trained on
    controller: ControllerState  # its `batch_size` is that of the next update
    eigenvalue: jax.Array  # shape (), float32: the last one measured, NaN before the first
    measurement_due: jax.Array  # shape (), bool: whether the next update is to bring a measurement
    missed: jax.Array  # shape (), int32: updates that were to bring one and brought none
    owed: jax.Array  # shape (), bool: whether the last of them has not been made up for
    eigenvector: Any  # like the params: where the next measurement starts; () where none is made here


def adaptive_batch_size(controller: Controller) -> optax.GradientTransformationExtraArgs:
    """Hold a batch-size rule, and scale updates by its learning-rate factor.

    The incoming updates are those of a batch of ``hessabs.read(state).batch_size`` examples. They are scaled by
    the factor that the rule had decided for it; the count of examples goes up; then the rule is called if it is
    time, and what it decides holds from the next update on. Place it after momentum, where a learning rate
    stands. ``hessabs.measurement_due`` tells whether the next update is to bring a measurement.

    ``update`` takes these extra arguments, and ignores others:

    * ``num_examples`` of this update, which ``hessabs.accumulate`` passes: what the count goes up by; the batch
      size if not given;
    * what the rule measures, which must be given: ``eigenvalue`` (None or NaN where none was measured), with
      ``standard_error`` if it has one, or ``gradient_statistics``, as ``hessabs.accumulate(...,
      statistics=True)`` passes them;
    * ``observation``: an ``Observation`` instead; its count of examples then replaces the state's own.

    Where an eigenvalue is due and none is told, it stays due, and ``state.missed`` counts the update.

    Args:
      controller: The rule.

    Raises:
      ValueError: From ``update``, if what the rule measures is not given, or can never be measured because an
        update has one micro-batch.

    Example:
      >>> import hessabs
      >>> rule = hessabs.batch_size.hessian_adaptive(2, 8, measure_every=4)
      >>> tx = optax.chain(adaptive_batch_size(rule), optax.sgd(0.1))
      >>> w = jnp.ones(())
      >>> state = tx.init(w)
      >>> for measured in (8.0, 4.0):
      ...     for _ in range(2):
      ...         eigenvalue = measured if hessabs.measurement_due(state) else None
      ...         updates, state = tx.update(w, state, w, eigenvalue=eigenvalue)
      >>> reading = hessabs.read(state)
      >>> int(reading.batch_size), float(reading.lr_scale), int(reading.samples)
      (4, 2.0, 8)
    """

    def update(
        updates: optax.Updates,
        state: AdaptiveBatchSizeState,
        params: Params | None = None,
        *,
        observation: Observation | None = None,
        eigenvalue: Any = _ABSENT,
        standard_error: Any = None,
        gradient_statistics: GradientStatistics | None = None,
        num_examples: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaptiveBatchSizeState]:
        del params, extra_args
        if observation is None:
            if controller.measures.endswith("eigenvalue") and eigenvalue is _ABSENT:
                raise ValueError(
                    "adaptive_batch_size needs `eigenvalue`, for its rule measures one: call "
                    "update(gradient, state, params, eigenvalue=...), with None or NaN where none was measured "
                    "(hessabs.measurement_due(state) is False)."
                )
            told = jnp.float32(jnp.nan) if eigenvalue is _ABSENT or eigenvalue is None else eigenvalue
            observation = Observation(_count(state, num_examples), told, standard_error, gradient_statistics)
        if controller.measures == "gradient":
            _check_parts(controller, observation.gradient)
        return scaled(updates, state.controller.lr_scale), _advance(controller, observation, state, ())

    return optax.GradientTransformationExtraArgs(lambda params: _start(controller, ()), update)


def self_measuring_batch_size(
    controller: Controller,
    *,
    key: jax.Array,
    max_iters: int = 10,
    rtol: float = 1e-2,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Hold a batch-size rule that measures its own eigenvalue, where the rule asks for one.

    As ``adaptive_batch_size``, but under ``lax.cond``, so at the updates that need it alone, the top eigenvalue
    of the Hessian of ``loss_fn(params, batch)`` is measured, from the eigenvector of the last measurement. For
    GPU and TPU: on the CPU, convolutions inside ``lax.cond`` run 20 to 50 times slower than outside.

    ``update`` takes the extra arguments ``loss_fn`` and ``batch`` (required; batch norm in evaluation mode) and
    ``num_examples``. A fixed ``batch``, another one than the gradient's, makes eigenvalues comparable. Place it
    outside ``optax.masked``, ``optax.partition`` and ``shard_map``'s split params.

    Args:
      controller: The rule, one that measures an eigenvalue of the whole Hessian.
      key: Random key that draws the first start vector.
      max_iters: Most products per measurement, at least 1.
      rtol: Relative residual at which a measurement is good enough.
      axis_name: The mapped axis over which ``batch`` is split, or None.

    Raises:
      ValueError: If the rule measures something else; from ``update``, if params, loss or batch are missing.

    Example:
      >>> import hessabs
      >>> rule = hessabs.batch_size.stability_limited(2, 8, lr=0.1, measure_every=2)
      >>> tx = optax.chain(self_measuring_batch_size(rule, key=jax.random.key(0)), optax.sgd(0.1))
      >>> loss = lambda w, batch: 2.5 * jnp.sum(w**2)  # eigenvalue 5
      >>> w = jnp.ones(3)
      >>> updates, state = tx.update(w, tx.init(w), w, loss_fn=loss, batch=None)
      >>> int(hessabs.read(state).batch_size)  # 5 * 0.1 * 2 < 2 <= 5 * 0.1 * 4
      4
    """
    if controller.measures not in ("eigenvalue", "nothing"):
        raise ValueError(
            "self_measuring_batch_size measures an eigenvalue of the whole Hessian, got a rule that measures "
            f"{controller.measures!r}; use adaptive_batch_size."
        )
    require("be a whole number of at least 1", max_iters=max_iters)

    def init(params: Params) -> AdaptiveBatchSizeState:
        trees.check_floating(params, "params")
        return _start(controller, trees.normal_like(key, params))

    def update(
        updates: optax.Updates,
        state: AdaptiveBatchSizeState,
        params: Params | None = None,
        *,
        loss_fn: Any = None,
        batch: Any = None,
        num_examples: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AdaptiveBatchSizeState]:
        del extra_args
        require_arguments("self_measuring_batch_size", params=params, loss_fn=loss_fn)
        samples = _count(state, num_examples)

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
        lr_scale = state.controller.lr_scale
        state = _advance(controller, Observation(samples, eigenvalue), state, eigenvector)
        return scaled(updates, lr_scale), state

    return optax.GradientTransformationExtraArgs(init, update)


def _start(controller: Controller, eigenvector: Any) -> AdaptiveBatchSizeState:
    samples, state = Count.of(0), controller.init()
    return AdaptiveBatchSizeState(
        samples,
        state,
        eigenvalue=jnp.full((), jnp.nan, jnp.float32),
        measurement_due=_due(samples, state),
        missed=jnp.zeros((), jnp.int32),
        owed=jnp.zeros((), bool),
        eigenvector=eigenvector,
    )


def _count(state: AdaptiveBatchSizeState, num_examples: Any) -> Count:
    return state.samples + (state.controller.batch_size if num_examples is None else num_examples)


def _due(samples: Count, state: ControllerState) -> jax.Array:
    return state.measure & (samples + state.batch_size >= state.observe_at)


def _advance(
    controller: Controller, observation: Observation, state: AdaptiveBatchSizeState, eigenvector: Any
) -> AdaptiveBatchSizeState:
    samples, before = Count.of(observation.samples), state.controller
    observation = observation._replace(samples=samples)
    eigenvalue = jnp.asarray(jnp.nan if observation.eigenvalue is None else observation.eigenvalue, jnp.float32)
    told = ~jnp.isnan(eigenvalue)
    reached = samples >= before.observe_at
    asked = (reached & before.measure) | state.owed
    if controller.measures == "gradient" and observation.gradient is not None:
        told = jnp.isfinite(noise_and_signal(observation.gradient)[0])
    late = state.owed & told
    new = controller.update(observation, before._replace(measure=before.measure | late))
    after = jax.tree.map(lambda n, o: jnp.where(reached | late, n, o), new, before)
    # Statistics of a gradient come with every update: the rule waits for the next ones that it wants.
    owed = asked & ~told & (controller.measures != "gradient")
    return AdaptiveBatchSizeState(
        samples,
        after,
        eigenvalue=jnp.where(jnp.isnan(eigenvalue), state.eigenvalue, eigenvalue),
        measurement_due=_due(samples, after) | owed,
        missed=state.missed + (asked & ~told),
        owed=owed,
        eigenvector=eigenvector,
    )


def _check_parts(controller: Controller, statistics: GradientStatistics | None) -> None:
    if statistics is None:
        raise ValueError(
            "adaptive_batch_size needs `gradient_statistics`, for its rule reads the noise of the gradient: "
            "put it into hessabs.accumulate(..., micro_batch_size=..., statistics=True), or call "
            "update(gradient, state, params, gradient_statistics=...)."
        )
    size, first = statistics.part_size, (controller.batch_sizes or (None,))[0]
    if isinstance(size, int) and first is not None and size >= first:
        raise ValueError(
            "A rule that reads the noise of the gradient compares the micro-batches of an update: "
            f"`micro_batch_size` must be at most half of its first batch of {first} examples, got {size}."
        )
