"""The noise of a gradient, from the gradients of the parts of one batch."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.batch_size.controller import GradientStatistics, Observation
from hessabs.batch_size.sizes import rounded
from hessabs.collectives import pmean
from hessabs.typing import Params


def gradient_statistics(
    gradients: Params, part_size: int, *, axis_name: str | None = None
) -> GradientStatistics:
    """Compare the gradients of equal parts of a batch.

    Args:
      gradients: The mean gradient of each part, a pytree whose leaves have a leading axis of parts (those of
        this device, with ``axis_name``).
      part_size: Examples in each part.
      axis_name: A mapped axis whose devices hold further parts, as many each.

    Returns:
      The statistics, the same on every device, with ``inner_square``.

    Example:
      >>> gradients = {"w": jnp.array([[3.0, 0.0], [1.0, 0.0]])}
      >>> statistics = gradient_statistics(gradients, 64)
      >>> [float(x) for x in statistics[2:]]
      [5.0, 4.0, 20.0]
    """
    num_parts = jax.tree.leaves(gradients)[0].shape[0]
    if axis_name is not None:
        num_parts *= jax.lax.axis_size(axis_name)
    wide = jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), gradients)
    mean = pmean(jax.tree.map(lambda g: jnp.mean(g, axis=0), wide), axis_name)
    squares = jax.vmap(lambda g: trees.vdot(g, g))(wide)
    inner = jax.vmap(lambda g: trees.vdot(g, mean))(wide)
    return GradientStatistics(
        jnp.asarray(part_size, jnp.int32),
        jnp.asarray(num_parts, jnp.int32),
        pmean(jnp.mean(squares), axis_name).astype(jnp.float32),
        trees.vdot(mean, mean).astype(jnp.float32),
        pmean(jnp.mean(inner**2), axis_name).astype(jnp.float32),
    )


def noise_and_signal(statistics: GradientStatistics) -> tuple[jax.Array, jax.Array]:
    """Estimate the variance of a single example's gradient and the square of the true gradient, without bias.

    With k parts of b examples: ``tr(Sigma) = b k / (k - 1) (mean_square - square_mean)`` and
    ``|G|^2 = square_mean - tr(Sigma) / (b k)``, the estimates of the paper with b and b k for its batch sizes.

    Args:
      statistics: Of the parts of a batch.

    Returns:
      (tr(Sigma), |G|^2), scalars float32; NaN where there is only one part.

    Example:
      >>> noise, signal = noise_and_signal(GradientStatistics(64, 2, 5.0, 4.0))
      >>> float(noise), float(signal)
      (128.0, 3.0)

    References:
      McCandlish et al. (2018), arXiv:1812.06162, appendix A.1.
    """
    parts = jnp.asarray(statistics.num_parts, jnp.float32)
    square_mean = jnp.asarray(statistics.square_mean, jnp.float32)
    variance = part_variance(statistics.mean_square, square_mean, parts)
    return rounded(statistics.part_size, variance), square_mean - variance / parts


def part_variance(mean_square: Any, square_mean: Any, num_parts: Any) -> jax.Array:
    """Return the unbiased variance over parts, ``k / (k - 1) (mean_square - square_mean)``; NaN for one."""
    parts = jnp.asarray(num_parts, jnp.float32)
    # Not below zero, where it is zero but for rounding.
    spread = jnp.maximum(jnp.asarray(mean_square, jnp.float32) - jnp.asarray(square_mean, jnp.float32), 0)
    return jnp.where(parts > 1, spread / (1 - 1 / jnp.maximum(parts, 2)), jnp.nan)


def need_gradient(observation: Observation, rule: str) -> GradientStatistics:
    """Return the gradient statistics of an observation, or raise ``ValueError`` where it has none."""
    if observation.gradient is None:
        raise ValueError(
            f"The observation has no `gradient`, which {rule} needs; where no measurement is due "
            "(state.measure is False) pass GradientStatistics(1, 1, 0.0, 0.0)."
        )
    return observation.gradient
