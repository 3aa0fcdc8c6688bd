"""The whole spectrum at once: stochastic Lanczos quadrature.

Each random probe gives a small tridiagonal matrix whose eigenvalues and the first components of whose
eigenvectors are the nodes and weights of a Gauss quadrature of the spectrum.
"""

from typing import NamedTuple

import jax
import numpy as np

from hessabs import loops, trees
from hessabs.checks import count
from hessabs.curvature.lanczos import checked_dimension, lanczos
from hessabs.typing import MatVec, Params


class SpectralDensity(NamedTuple):
    """Quadratures of the spectrum, one for each probe, and the tridiagonal matrices they come from."""

    nodes: np.ndarray  # shape (probes, iters), float64: Ritz values, ascending
    weights: np.ndarray  # shape (probes, iters), float64: each row sums to 1
    diagonal: np.ndarray  # shape (probes, iters)
    off_diagonal: np.ndarray  # shape (probes, iters - 1)
    num_matvecs: int  # products computed


def spectral_density(
    matvec: MatVec,
    like: Params,
    key: jax.Array,
    *,
    num_probes: int = 10,
    num_iters: int = 60,
    loop: loops.Loop | None = None,
) -> SpectralDensity:
    """Estimate the distribution of all eigenvalues of a symmetric operator.

    Args:
      matvec, like, key, loop: As in ``trace``.
      num_probes: Random start vectors (normal), at least 1; two or more give standard errors.
      num_iters: Products for each probe, from 1 to the dimension.

    Returns:
      What ``evaluate_density`` draws. A product that is not finite shows as NaN in its probe.

    Raises:
      ValueError: If a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> matvec = lambda v: jnp.array([1.0, 2.0, 4.0]) * v
      >>> density = spectral_density(matvec, jnp.ones(3), jax.random.key(0), num_probes=2, num_iters=3)
      >>> density.nodes.round(3)
      array([[1., 2., 4.],
             [1., 2., 4.]])

    References:
      Ubaru, Chen and Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"; Ghorbani et
      al. (2019), arXiv:1901.10159.
    """
    num_probes = count(num_probes=num_probes)
    trees.check_floating(like, "like")
    if trees.is_traced(matvec, like, key):
        raise ValueError(
            "spectral_density makes its quadrature on the host and cannot be traced (jit, vmap, grad); use "
            "lanczos there."
        )
    num_iters = checked_dimension("num_iters", num_iters, trees.size(like))
    diagonals, off_diagonals, num_matvecs = [], [], 0
    for one in jax.random.split(key, num_probes):
        result = lanczos(matvec, trees.normal_like(one, like), num_iters, loop=loop)
        missing = np.where(result.finite, 0.0, np.nan)
        diagonals.append(np.asarray(result.diagonal, np.float64) + missing)
        off_diagonals.append(np.asarray(result.off_diagonal, np.float64) + missing)
        num_matvecs += int(result.num_iters)
    quadratures = [_quadrature(d, o) for d, o in zip(diagonals, off_diagonals, strict=True)]
    nodes, weights = (np.stack(x) for x in zip(*quadratures, strict=True))
    return SpectralDensity(nodes, weights, np.stack(diagonals), np.stack(off_diagonals), num_matvecs)


def evaluate_density(density: SpectralDensity, grid: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate a spectral density, every node widened to a normal distribution.

    Args:
      density: From ``spectral_density``. No product is computed.
      grid: Where, shape (points,), in the units of the eigenvalues.
      width: Standard deviation, positive, in the same units.

    Returns:
      The density at each point (it integrates to 1) and its standard error over the probes (NaN for one probe),
      both of shape (points,).

    Raises:
      ValueError: If ``width`` is not positive.

    Example:
      >>> one = SpectralDensity(np.zeros((1, 1)), np.ones((1, 1)), np.zeros((1, 1)), np.zeros((1, 0)), 1)
      >>> evaluate_density(one, np.array([0.0]), width=1.0)[0].round(4)
      array([0.3989])
    """
    if not width > 0:
        raise ValueError(f"`width` must be positive, got {width}.")
    distance = (np.asarray(grid)[None, :, None] - density.nodes[:, None, :]) / width
    kernel = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
    curves = (kernel @ density.weights[:, :, None])[..., 0]
    probes = len(curves)
    error = curves.std(0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(len(curves[0]), np.nan)
    return curves.mean(0), error


def _quadrature(diagonal: np.ndarray, off_diagonal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not (np.isfinite(diagonal).all() and np.isfinite(off_diagonal).all()):
        return np.full_like(diagonal, np.nan), np.full_like(diagonal, np.nan)
    nodes, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1))
    return nodes, vectors[0] ** 2
