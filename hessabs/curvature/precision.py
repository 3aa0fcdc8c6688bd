"""Curvature in full precision, on every backend.

GPUs multiply float32 matrices with 10 bits of mantissa (TF32) and TPUs with 7 (bfloat16) unless they are told
otherwise. A Krylov basis would not be orthogonal, nor residuals those of the operator that was asked for.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax

F = TypeVar("F", bound=Callable[..., Any])


def full_precision(function: F) -> F:
    """Make a function trace its matrix products and convolutions in the full precision of their dtype.

    The products of the derivatives that are taken inside the function inherit it. Where the user has set a
    precision (``jax.default_matmul_precision`` or ``JAX_DEFAULT_MATMUL_PRECISION``), that one holds. CPUs know
    no other precision: nothing changes there.
    """

    @functools.wraps(function)
    def precise(*args: Any, **kwargs: Any) -> Any:
        chosen: Any = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  mypy does not know it
        if jax.default_backend() == "cpu" or chosen is not None:
            return function(*args, **kwargs)
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise  # type: ignore[return-value]
