"""The memory that one row of a batch takes while a function computes.

On the CPU XLA needs longer for each example of a large batch than of a small one, once the arrays between its
operations leave the caches (``experiments/benchmarks/convolution.py`` measures it).
"""

from typing import Any

import numpy as np

from hessabs.jaxprs import equations

CACHED = 6_500_000
"""Bytes of the largest array of a program up to which XLA's time for each row does not grow on a CPU core."""


def bytes_per_row(function: Any, num_rows: int, *args: Any) -> float:
    """Estimate the bytes of the largest array in the program of a jitted function, for each row of its batch.

    XLA may never make that array, or make a larger one.
    """
    program = function.trace(*args).jaxpr.jaxpr
    return max((_size(atom.aval) for eqn in equations(program) for atom in eqn.outvars), default=0) / num_rows


def _size(aval: Any) -> int:
    shape, dtype = getattr(aval, "shape", ()), getattr(aval, "dtype", None)
    # A random key has a dtype of JAX's own.
    return int(np.prod(shape)) * getattr(dtype, "itemsize", 1)
