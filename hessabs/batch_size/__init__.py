"""How large is the next batch? Rules behind one controller protocol; no autodiff here."""

from hessabs.batch_size.adascale import adascale
from hessabs.batch_size.bounds import Bounds, growth_bounds, training_seconds
from hessabs.batch_size.controller import (
    Controller,
    ControllerState,
    GradientStatistics,
    Measurement,
    Observation,
    restore,
)
from hessabs.batch_size.counting import NEVER, Count
from hessabs.batch_size.cyclical import cyclical
from hessabs.batch_size.growth import batch_growth, fixed_growth, seesaw, timer
from hessabs.batch_size.hessian import absa, hessian_adaptive
from hessabs.batch_size.noise import gradient_noise_scale, norm_test
from hessabs.batch_size.planner import Plan, PlannedEpoch, plan
from hessabs.batch_size.ramp import ramp
from hessabs.batch_size.rule import (
    Coupling,
    Decision,
    Rate,
    Rule,
    make_controller,
    with_adversarial,
    with_coupling,
    with_decay,
)
from hessabs.batch_size.stability import stability_limited
from hessabs.batch_size.statistics import gradient_statistics, mean_and_error, noise_and_signal
from hessabs.batch_size.table import constant, linear_ramp, linear_scaling, schedule

__all__ = [
    "NEVER",
    "Bounds",
    "Controller",
    "ControllerState",
    "Count",
    "Coupling",
    "Decision",
    "GradientStatistics",
    "Measurement",
    "Observation",
    "Plan",
    "PlannedEpoch",
    "Rate",
    "Rule",
    "absa",
    "adascale",
    "batch_growth",
    "constant",
    "cyclical",
    "fixed_growth",
    "gradient_noise_scale",
    "gradient_statistics",
    "growth_bounds",
    "hessian_adaptive",
    "linear_ramp",
    "linear_scaling",
    "make_controller",
    "mean_and_error",
    "noise_and_signal",
    "norm_test",
    "plan",
    "ramp",
    "restore",
    "schedule",
    "seesaw",
    "stability_limited",
    "timer",
    "training_seconds",
    "with_adversarial",
    "with_coupling",
    "with_decay",
]
