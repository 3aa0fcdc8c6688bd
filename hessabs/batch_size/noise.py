"""Batches as large as the noise of the gradient: the noise scale and the norm test."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from hessabs.batch_size.checks import require_sizes
from hessabs.batch_size.controller import Controller, ControllerState, Observation
from hessabs.batch_size.counting import NEVER, Count, next_multiple, where
from hessabs.batch_size.rule import Decision, Rate, Rule, make_controller
from hessabs.batch_size.sizes import grow_by, whole_batches
from hessabs.batch_size.statistics import need_gradient, noise_and_signal, part_variance
from hessabs.checks import require, require_one_of

Test = Literal["norm", "inner_product"]


class NoiseMemory(NamedTuple):
    """Running means of the estimates; their common bias at the start cancels in a ratio."""

    noise: jax.Array  # shape (), float32: of tr(Sigma)
    signal: jax.Array  # shape (), float32: of |G|^2

    @classmethod
    def empty(cls) -> "NoiseMemory":
        """Return the memory before the first estimate."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def add(self, noise: jax.Array, signal: jax.Array, valid: jax.Array, over: int) -> "NoiseMemory":
        """Average one more pair of estimates in, where it is valid, over a power of two of them."""
        # The weight is a power of two, so its product is exact: a compiler that fuses it with the sum
        # gives the same bits as one that does not.
        pairs = zip(self, (noise, signal), strict=True)
        return NoiseMemory(*(jnp.where(valid, old + (new - old) * (1 / over), old) for old, new in pairs))


class _Memory(NamedTuple):
    average: Any  # what the rule averages over observations, or ()
    measure_at: Count  # examples at the next measurement


def gradient_noise_scale(
    initial: int,
    maximum: int,
    *,
    measure_every: int,
    scale: float = 1.0,
    average_over: int = 8,
    growth_factor: float = 2.0,
    start: int = 0,
) -> Controller:
    """Let the batch follow the gradient noise scale ``tr(Sigma) / |G|^2``, which rises as the loss falls.

    The two estimates come from the gradients of the parts (micro-batches, devices) of an update, without a
    further pass, and are averaged over observations before they are divided. The batch is ``scale`` times their
    ratio, rounded down to a multiple of ``initial``; it never falls. Where the averaged ``|G|^2`` is not
    positive (noise drowns it), or an update had one part, nothing is decided.

    Args:
      initial, maximum: As in ``timer``; ``initial`` at least two parts of an update.
      measure_every: Examples between observations, at least 1.
      scale: Batch size in noise scales, above 0.
      average_over: Observations that the running means cover (their weight is its inverse), a power of two.
      growth_factor: The most that the batch grows by at once, above 1.
      start: Examples before which the estimates are averaged and nothing is decided, at least 0: the noise
        scale of an untrained network is often large, and falls.

    Returns:
      A ``Controller`` that measures ``"gradient"``: ``Observation.gradient`` must then be of the last update.

    Raises:
      ValueError: If a parameter is out of its range; from ``update``, if the observation has no gradient.

    Example:
      >>> from hessabs.batch_size import GradientStatistics
      >>> controller = gradient_noise_scale(128, 1024, measure_every=1000, average_over=1)
      >>> statistics = GradientStatistics(64, 2, mean_square=10.0, square_mean=6.0)  # 512 / 2
      >>> state = controller.update(Observation(1000, gradient=statistics), controller.init())
      >>> int(state.batch_size)
      256

    References:
      McCandlish et al. (2018), arXiv:1812.06162. Differs from the paper: there the noise scale is a
      prediction; here it sets the batch, and only upwards.
    """
    require_sizes(initial, maximum)
    require("be positive and finite", scale=scale)
    require("be a power of two observations", average_over=average_over)
    require("be above 1", growth_factor=growth_factor)
    require("be at least 0 examples", start=start)

    def wanted(observation: Observation, state: ControllerState, measured: jax.Array) -> tuple[jax.Array, Any]:
        noise, signal = noise_and_signal(need_gradient(observation, "gradient_noise_scale"))
        valid = measured & jnp.isfinite(noise) & jnp.isfinite(signal)
        average = state.rule.average.add(noise, signal, valid, average_over)
        usable = (
            valid & (average.signal >= jnp.finfo(jnp.float32).tiny) & (Count.of(observation.samples) >= start)
        )
        size = jnp.where(usable, scale * average.noise / jnp.where(usable, average.signal, 1.0), 0.0)
        # More than fit is the maximum, of whole initial batches or not.
        factor = jnp.where(size < maximum, size / initial, maximum // initial + 1).astype(jnp.int32)
        return jnp.minimum(factor, grow_by(state.batch_size // initial, growth_factor)), average

    return _grown_to(initial, maximum, measure_every, wanted, NoiseMemory.empty())


def norm_test(
    initial: int, maximum: int, *, measure_every: int, test: Test = "norm", tolerance: float = 1.0
) -> Controller:
    """Grow the batch when the noise of its gradient is too large for a test.

    A batch of b examples passes ``"norm"`` if ``tr(Sigma) / b <= tolerance^2 ||g||^2``, ``"inner_product"`` if
    ``Var(g_x . g) / b <= tolerance^2 ||g||^4`` (Var over single examples x). One that fails becomes the
    smallest batch that would have passed, rounded up to a multiple of ``initial``. It never falls. The
    variances are those of the parts (micro-batches, devices) of an update, times their size.

    Args:
      initial, maximum: As in ``gradient_noise_scale``.
      measure_every: Examples between tests, at least 1. The paper tests every update.
      test: ``"norm"`` or ``"inner_product"``; the latter needs ``GradientStatistics.inner_square``.
      tolerance: eta of the norm test, theta of the inner-product test, above 0.

    Returns:
      A ``Controller`` that measures ``"gradient"``.

    Raises:
      ValueError: If a parameter is out of its range; from ``update``, if the observation has no gradient, or no
        inner products for the test of them.

    Example:
      >>> from hessabs.batch_size import GradientStatistics
      >>> controller = norm_test(128, 1024, measure_every=1000)
      >>> statistics = GradientStatistics(64, 2, mean_square=3.0, square_mean=1.0)  # 64 * 4 / 1
      >>> state = controller.update(Observation(1000, gradient=statistics), controller.init())
      >>> int(state.batch_size)
      256

    References:
      Lau et al. (2024), arXiv:2402.11215 (norm test) and arXiv:2412.21124 (its variance across devices);
      Bollapragada et al. (2018), arXiv:1710.11258 (inner-product test).
    """
    require_sizes(initial, maximum)
    require_one_of(get_args(Test), test=test)
    require("be positive and finite", tolerance=tolerance)

    def wanted(observation: Observation, state: ControllerState, measured: jax.Array) -> tuple[jax.Array, Any]:
        statistics = need_gradient(observation, "norm_test")
        square = jnp.asarray(statistics.square_mean, jnp.float32)
        if test == "norm":
            variance, allowed = part_variance(statistics.mean_square, square, statistics.num_parts), square
        elif statistics.inner_square is None:
            raise ValueError(
                "The observation's gradient statistics have no `inner_square`, which "
                'norm_test(test="inner_product") needs; gradient_statistics computes it.'
            )
        else:
            allowed = square * square
            variance = part_variance(statistics.inner_square, allowed, statistics.num_parts)
        variance = variance * jnp.asarray(statistics.part_size, jnp.float32)
        usable = measured & jnp.isfinite(variance) & (allowed >= jnp.finfo(jnp.float32).tiny)
        size = variance / jnp.where(usable, allowed, 1.0) * (1 / tolerance**2)
        size = jnp.ceil(jnp.where(usable, jnp.minimum(size, maximum), 0.0)).astype(jnp.int32)
        return -(-size // initial), ()

    return _grown_to(initial, maximum, measure_every, wanted, ())


def _grown_to(
    initial: int,
    maximum: int,
    measure_every: int,
    wanted: Callable[[Observation, ControllerState, jax.Array], tuple[jax.Array, Any]],
    average: Any,
) -> Controller:
    # `wanted` gives the batch in initial ones, 0 where it decides nothing.
    require("be at least 1 example", measure_every=measure_every)

    def decide(batch_size: jax.Array, memory: _Memory, rate: Rate) -> Decision:
        measure_at = where(batch_size < maximum, memory.measure_at, NEVER)
        return Decision(batch_size, rate.of(batch_size), memory, measure_at=measure_at)

    def init(rate: Rate) -> Decision:
        return decide(jnp.int32(initial), _Memory(average, Count.of(measure_every)), rate)

    def update(observation: Observation, state: ControllerState, rate: Rate) -> Decision:
        memory: _Memory = state.rule
        samples = Count.of(observation.samples)
        measured = state.measure & (samples >= memory.measure_at)
        factor, averaged = wanted(observation, state, measured)
        batch_size = jnp.maximum(whole_batches(factor, initial, maximum), state.batch_size)
        measure_at = where(measured, next_multiple(samples, measure_every), memory.measure_at)
        return decide(batch_size, _Memory(averaged, measure_at), rate)

    return make_controller(Rule(init, update, (initial, maximum), "gradient"))
