"""Curvature, adversarial examples and adaptive batch sizes for training in JAX."""

from hessabs import attacks, batch_size, curvature
from hessabs.curvature import dataset_hessian, eigsh, hessian, hvp, lanczos, power_iteration, spectral_density
from hessabs.transforms import (
    accumulate,
    adaptive_batch_size,
    adversarial_gradient,
    by_examples,
    by_samples,
    follow_batch,
    measurement_due,
    read,
    scale_by_batch_size,
    self_measuring_batch_size,
)

__all__ = [
    "accumulate",
    "adaptive_batch_size",
    "adversarial_gradient",
    "attacks",
    "batch_size",
    "by_examples",
    "by_samples",
    "curvature",
    "dataset_hessian",
    "eigsh",
    "follow_batch",
    "hessian",
    "hvp",
    "lanczos",
    "measurement_due",
    "power_iteration",
    "read",
    "scale_by_batch_size",
    "self_measuring_batch_size",
    "spectral_density",
]
__version__ = "0.1.0"
