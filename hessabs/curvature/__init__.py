"""What is the curvature here? Matrix-vector products and what is computed from them."""

from hessabs.curvature.operators import hessian, hvp
from hessabs.curvature.power import PowerIterationResult, power_iteration

__all__ = ["PowerIterationResult", "hessian", "hvp", "power_iteration"]
