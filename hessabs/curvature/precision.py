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
    """Make a function trace its products, those of its derivatives too, in the full precision of their dtype.

    A precision that the user has set (``jax.default_matmul_precision``) holds. CPUs know no other.
    """

    @functools.wraps(function)
    def precise(*args: Any, **kwargs: Any) -> Any:
        chosen: Any = getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  mypy does not know it
        if jax.default_backend() == "cpu" or chosen is not None:
            return function(*args, **kwargs)
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return precise  # type: ignore[return-value]
