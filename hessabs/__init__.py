"""Curvature, adversarial examples and adaptive batch sizes for training in JAX."""

from hessabs import attacks, batch_size, curvature
from hessabs.curvature import hessian, hvp, power_iteration
from hessabs.transforms import adversarial_gradient, scale_by_batch_size

__all__ = [
    "adversarial_gradient",
    "attacks",
    "batch_size",
    "curvature",
    "hessian",
    "hvp",
    "power_iteration",
    "scale_by_batch_size",
]
__version__ = "0.1.0"
