"""Curvature, adversarial examples and adaptive batch sizes for training in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hessabs import attacks, batch_size, curvature
    from hessabs.curvature import dataset_hessian, hessian, hvp, power_iteration, spectral_density
    from hessabs.curvature.eigsh import eigsh
    from hessabs.curvature.lanczos import lanczos
    from hessabs.transforms import (
        accumulate,
        adaptive_batch_size,
        adversarial_gradient,
        by_examples,
        by_samples,
        follow_batch,
        guarded_learning_rate,
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
    "guarded_learning_rate",
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
__version__ = "0.3.0.dev0"


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: the command line must be able to answer Ctrl-C before JAX is there.
    if name in ("attacks", "batch_size", "curvature", "transforms"):
        return importlib.import_module(f"hessabs.{name}")
    if name in __all__:
        for home in ("hessabs.curvature", "hessabs.transforms"):
            module = importlib.import_module(home)
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module 'hessabs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
