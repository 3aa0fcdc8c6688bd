"""Curvature, adversarial examples and adaptive batch sizes for training in JAX."""

from hessabs import attacks, batch_size, curvature
from hessabs.curvature import hessian, hvp, power_iteration
from hessabs.transforms import (
    accumulate,
    adaptive_batch_size,
    adversarial_gradient,
    by_samples,
    scale_by_batch_size,
    self_measuring_batch_size,
)

__all__ = [
    "accumulate",
    "adaptive_batch_size",
    "adversarial_gradient",
    "attacks",
    "batch_size",
    "by_samples",
    "curvature",
    "hessian",
    "hvp",
    "power_iteration",
    "scale_by_batch_size",
    "self_measuring_batch_size",
]
__version__ = "0.1.0"
