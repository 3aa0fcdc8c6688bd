"""Curvature and the choice of the batch: how the spectrum varies over batches, and an eigenvalue without bias.

The largest eigenvalue of a small batch is biased upwards: its eigenvector is fitted to that batch. Measured
along the eigenvector of one batch, the curvature of another, independent one has no such bias.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs import batch_axis, loops, trees
from hessabs.curvature.eigsh import eigsh
from hessabs.curvature.linearization import Weight
from hessabs.curvature.operators import hessian, hvp
from hessabs.curvature.passes import Batches, one_pass
from hessabs.curvature.power import power_iteration
from hessabs.typing import Batch, LossFn, Params


class BatchSpectra(NamedTuple):
    """The top of the spectrum of each batch."""

    eigenvalues: np.ndarray  # shape (batches, k), float64, descending
    residuals: np.ndarray  # shape (batches, k), float64, relative
    converged: np.ndarray  # shape (batches, k), bool
    num_matvecs: np.ndarray  # shape (batches,), int64
    weights: np.ndarray  # shape (batches,), float64: how much each counts in a mean over all batches


def batch_spectra(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    v0: Params,
    k: int = 1,
    *,
    linearize: bool = True,
    has_aux: bool = False,
    weight: Weight = None,
    **options: Any,
) -> BatchSpectra:
    """Find the k largest Hessian eigenvalues of every mini-batch, of an epoch say.

    Each batch starts from the sum of the eigenvectors of the one before; batches of one shape compile once.

    Args:
      loss_fn, params, linearize, has_aux: As in ``hessian``.
      batches: An iterable, read once, or a function that opens one.
      v0: Start vector for the first batch, like ``params``.
      k: Number of eigenvalues.
      weight: As in ``hessian``. The loss of a batch that weighs 0 may be NaN; its eigenvalues are then.
      **options: Of ``eigsh``: ``which``, ``rtol``, ``max_matvecs``, ``num_vectors``, ``loop``.

    Raises:
      ValueError: If there is no batch, or as ``eigsh``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x * w) ** 2)
      >>> batches = [jnp.ones((4, 1)), 2 * jnp.ones((4, 1))]
      >>> batch_spectra(loss, jnp.ones(1), batches, jnp.ones(1)).eigenvalues.round(3)
      array([[2.],
             [8.]])
    """
    results, weights, start = [], [], v0
    for batch in one_pass(batches):
        operator = hessian(loss_fn, params, batch, linearize=linearize, has_aux=has_aux)
        result = eigsh(operator, start, k, **options)
        if np.isfinite(result.eigenvalues).all():
            start = jax.tree.map(lambda x: x.sum(0), result.eigenvectors)
        results.append((result.eigenvalues, result.residuals, result.converged, result.num_matvecs))
        weights.append(float(batch_axis.total_weight(weight, batch)))
    values, residuals, converged, num_matvecs = (np.array(x) for x in zip(*results, strict=True))
    return BatchSpectra(values, residuals, converged, num_matvecs, np.array(weights))


class DebiasedEigenvalue(NamedTuple):
    """A top eigenvalue measured on one batch along the eigenvector of another."""

    eigenvalue: jax.Array  # shape (): v' H_b v, without the upward bias
    biased: jax.Array  # shape (): v' H_a v, the eigenvalue of batch a
    eigenvector: Params  # like v0: v, of batch a
    residual: jax.Array  # shape (): of (biased, v), relative


def debiased_eigenvalue(
    loss_fn: LossFn,
    params: Params,
    batch_a: Batch,
    batch_b: Batch,
    v0: Params,
    *,
    max_iters: int = 20,
    rtol: float = 1e-2,
    has_aux: bool = False,
    loop: loops.Loop | None = None,
) -> DebiasedEigenvalue:
    """Measure the dominant curvature: the direction from one batch, the curvature from another.

    Args:
      loss_fn, params, has_aux: As in ``hessian``.
      batch_a: Gives the eigenvector, by ``power_iteration``.
      batch_b: Gives the curvature along it; independent of ``batch_a``.
      v0, max_iters, rtol, loop: As in ``power_iteration``.

    Raises:
      ValueError: As ``power_iteration``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)
      >>> a, b = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> result = debiased_eigenvalue(loss, jnp.ones(2), a, b, jnp.ones(2), rtol=1e-4)
      >>> round(float(result.biased), 2), round(float(result.eigenvalue), 2)
      (4.0, 1.0)
    """
    linearize = loops.choose(loop, params, batch_a, v0) == "host"
    operator = hessian(loss_fn, params, batch_a, linearize=linearize, has_aux=has_aux)
    top = power_iteration(operator, v0, max_iters=max_iters, rtol=rtol, loop=loop)
    across = trees.vdot(top.eigenvector, hvp(loss_fn, params, batch_b, top.eigenvector, has_aux=has_aux))
    return DebiasedEigenvalue(across, top.eigenvalue, top.eigenvector, top.residual)
