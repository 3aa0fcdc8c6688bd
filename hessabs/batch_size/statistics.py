"""What a rule may believe of what is measured: the noise of a gradient, and eigenvalues."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.batch_size.controller import ControllerState, GradientStatistics, Observation
from hessabs.batch_size.counting import Count, next_multiple, where
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


def mean_and_error(eigenvalues: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Average the eigenvalues of several batches.

    Args:
      eigenvalues: Top eigenvalues, one of each batch, shape (batches,), at least two.

    Returns:
      Their mean and its standard error, for ``Observation.eigenvalue`` and ``Observation.standard_error``.

    Raises:
      ValueError: If there are fewer than two.

    Example:
      >>> mean, error = mean_and_error(jnp.array([4.0, 6.0]))
      >>> float(mean), float(error)
      (5.0, 1.0)
    """
    eigenvalues = jnp.asarray(eigenvalues)
    if eigenvalues.ndim != 1 or eigenvalues.shape[0] < 2:
        raise ValueError(f"`eigenvalues` must have shape (batches,), at least 2, got {eigenvalues.shape}.")
    return jnp.mean(eigenvalues), jnp.std(eigenvalues, ddof=1) / eigenvalues.shape[0] ** 0.5


def hear(
    observation: Observation, state: ControllerState, every: int, rule: str
) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, Any]]:
    """Read the eigenvalue that a rule is told; its memory has the fields ``measure_at`` and ``owed``.

    NaN says that none was measured. One that was due and was not told may still be told at a later update, with
    a ``state.measure`` that says it is fresh.

    Returns the eigenvalue, float32; whether one is due now, and whether it is one that the rule asked for, bool
    scalars; and the two fields of the memory.
    """
    if observation.eigenvalue is None:
        raise ValueError(
            f"The observation has no `eigenvalue`, which {rule} needs; "
            "where none is due (state.measure is False) pass float('nan')."
        )
    samples, memory = Count.of(observation.samples), state.rule
    eigenvalue = jnp.asarray(observation.eigenvalue, jnp.float32)
    due = state.measure & (samples >= memory.measure_at)
    told = (due | (state.measure & memory.owed)) & ~jnp.isnan(eigenvalue)
    measure_at = where(due, next_multiple(samples, every), memory.measure_at)
    return eigenvalue, due, told, {"measure_at": measure_at, "owed": (due | memory.owed) & ~told}


def is_valid(eigenvalue: jax.Array) -> jax.Array:
    """Tell whether an eigenvalue may decide: finite, positive and not subnormal.

    Subnormal numbers count as zero, because compiled code flushes them to zero and eager code does not.

    >>> [bool(is_valid(jnp.float32(x))) for x in (2.0, 0.0, -1.0, float("nan"), float("inf"))]
    [True, False, False, False, False]
    """
    return jnp.isfinite(eigenvalue) & (eigenvalue >= jnp.finfo(jnp.float32).tiny)
