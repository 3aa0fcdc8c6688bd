"""The spectrum of an operator in one call: the largest eigenvalues, the trace, the density."""

from typing import NamedTuple

import jax
import numpy as np

from hessabs import trees
from hessabs.curvature.density import SpectralDensity, spectral_density
from hessabs.curvature.eigsh import EigshResult, eigsh
from hessabs.curvature.trace import Estimate, trace
from hessabs.typing import MatVec, Params


class Summary(NamedTuple):
    """What ``summary`` found; each part says itself how good it is."""

    top: EigshResult  # the largest eigenvalues, descending, with residuals
    trace: Estimate  # with a standard error
    density: SpectralDensity  # of all eigenvalues
    num_params: int


def summary(
    matvec: MatVec,
    like: Params,
    key: jax.Array,
    *,
    k: int = 5,
    rtol: float = 1e-2,
    num_matvecs: int = 60,
    num_probes: int = 4,
    num_iters: int = 40,
) -> Summary:
    """Say what a spectrum looks like, for about 300 products.

    Args:
      matvec: A symmetric operator, as ``hessian`` makes it.
      like: A pytree of the structure of its vectors: the params.
      key: A random key.
      k, rtol: Largest eigenvalues that are wanted (at most as many as there are numbers in ``like``), and the
        relative residual of each; see ``eigsh``.
      num_matvecs: Products for the trace; see ``trace``.
      num_probes, num_iters: Probes for the density and products for each (at most as many as there are
        numbers in ``like``); see ``spectral_density``.

    Raises:
      ValueError: If a number is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> found = summary(lambda v: jnp.array([1.0, 2.0, 4.0]) * v, jnp.ones(3), jax.random.key(0), k=1)
      >>> float(found.top.eigenvalues[0].round(3)), float(found.trace.value), found.num_params
      (4.0, 7.0, 3)
    """
    for_top, for_trace, for_density = jax.random.split(key, 3)
    size = sum(int(np.size(x)) for x in jax.tree.leaves(like))
    return Summary(
        eigsh(matvec, trees.normal_like(for_top, like), min(k, size), rtol=rtol),
        trace(matvec, like, for_trace, num_matvecs=num_matvecs),
        spectral_density(matvec, like, for_density, num_probes=num_probes, num_iters=min(num_iters, size)),
        size,
    )
