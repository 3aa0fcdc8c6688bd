"""What a rule may believe of a measured eigenvalue."""

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import ControllerState, Observation
from hessabs.batch_size.counting import Count


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


def need_eigenvalue(observation: Observation, rule: str) -> jax.Array:
    """Return the eigenvalue of an observation, float32 (NaN where none was due), or raise ``ValueError``."""
    if observation.eigenvalue is None:
        raise ValueError(
            f"The observation has no `eigenvalue`, which {rule} needs; "
            "where none is due (state.measure is False) pass float('nan')."
        )
    return jnp.asarray(observation.eigenvalue, jnp.float32)


def hear(
    state: ControllerState, samples: Count, eigenvalue: jax.Array, measure_at: Count, owed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tell what an eigenvalue is to a rule that asked for one: NaN says that none was measured.

    One that was due and was not told may still be told at a later update, with a ``state.measure`` that says it
    is fresh.

    Returns bool scalars: whether one is due now; whether the rule is told one that it asked for; whether one is
    owed.
    """
    due = state.measure & (samples >= measure_at)
    told = (due | (state.measure & owed)) & ~jnp.isnan(eigenvalue)
    return due, told, (due | owed) & ~told


def is_valid(eigenvalue: jax.Array) -> jax.Array:
    """Tell whether an eigenvalue may decide: finite, positive and not subnormal.

    Subnormal numbers count as zero, because compiled code flushes them to zero and eager code does not.

    >>> [bool(is_valid(jnp.float32(x))) for x in (2.0, 0.0, -1.0, float("nan"), float("inf"))]
    [True, False, False, False, False]
    """
    return jnp.isfinite(eigenvalue) & (eigenvalue >= jnp.finfo(jnp.float32).tiny)
