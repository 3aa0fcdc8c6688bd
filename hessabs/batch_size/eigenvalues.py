"""What a rule may believe of a measured eigenvalue."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import ControllerState, Observation
from hessabs.batch_size.counting import Count, next_multiple, where


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
