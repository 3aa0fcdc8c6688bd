"""What is the curvature here? Matrix-vector products and what is computed from them."""

from hessabs.curvature.blocks import restrict
from hessabs.curvature.dataset import check_deterministic, dataset_hessian
from hessabs.curvature.gauss_newton import empirical_fisher, fisher, gauss_newton
from hessabs.curvature.input_hessian import input_hessian
from hessabs.curvature.last_layer import last_layer
from hessabs.curvature.operators import hessian, hvp
from hessabs.curvature.power import PowerIterationResult, power_iteration

__all__ = [
    "PowerIterationResult",
    "check_deterministic",
    "dataset_hessian",
    "empirical_fisher",
    "fisher",
    "gauss_newton",
    "hessian",
    "hvp",
    "input_hessian",
    "last_layer",
    "power_iteration",
    "restrict",
]
