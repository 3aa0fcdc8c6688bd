"""How large is the next batch? Rules behind one controller protocol; no autodiff here."""

from hessabs.batch_size.controller import NEVER, Controller, ControllerState, Observation
from hessabs.batch_size.hessian import hessian_adaptive
from hessabs.batch_size.schedules import constant

__all__ = ["NEVER", "Controller", "ControllerState", "Observation", "constant", "hessian_adaptive"]
