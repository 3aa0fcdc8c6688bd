"""The memory that one row of a batch takes while a function computes.

On the CPU XLA needs longer for each example of a large batch than of a small one, once the arrays between its
operations leave the caches (``experiments/benchmarks/convolution.py`` measures it).
"""

from typing import Any

import numpy as np
from jax.extend.core import Jaxpr

from hessabs.jaxprs import inner_jaxprs

CACHED = 6_500_000
"""Bytes of the largest array of a program up to which XLA's time for each row does not grow on a CPU core."""


def bytes_per_row(function: Any, num_rows: int, *args: Any) -> float:
    """Estimate how large the largest array of a program is, for each row of its batch."""
    return _largest(function.trace(*args).jaxpr.jaxpr) / num_rows


def _largest(jaxpr: Jaxpr) -> int:
    here = [_size(atom.aval) for eqn in jaxpr.eqns for atom in eqn.outvars]
    inside = [_largest(inner) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn)]
    return max(here + inside, default=0)


def _size(aval: Any) -> int:
    shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
    # A random key has a dtype of JAX's own.
    return int(np.prod(shape)) * getattr(dtype, "itemsize", 1)
