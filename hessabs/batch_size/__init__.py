"""How large is the next batch? Rules behind one controller protocol; no autodiff here."""

from hessabs.batch_size.controller import (
    NEVER,
    Controller,
    ControllerState,
    GradientStatistics,
    Measurement,
    Observation,
)
from hessabs.batch_size.eigenvalues import mean_and_error
from hessabs.batch_size.hessian import hessian_adaptive
from hessabs.batch_size.schedules import constant, linear_scaling

__all__ = [
    "NEVER",
    "Controller",
    "ControllerState",
    "GradientStatistics",
    "Measurement",
    "Observation",
    "constant",
    "hessian_adaptive",
    "linear_scaling",
    "mean_and_error",
]
