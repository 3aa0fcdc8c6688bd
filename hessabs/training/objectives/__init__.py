"""Robust training as objectives of the one training step: a file for each idea."""

from hessabs.training.robust.attacked import attacked
from hessabs.training.robust.free import free
from hessabs.training.robust.inner import InnerAttack, make_inner
from hessabs.training.robust.mixing import mixing
from hessabs.training.robust.objective import Contribution, Objective
from hessabs.training.robust.options import ROBUST, check, make_objective, resolve
from hessabs.training.robust.sam import sam
from hessabs.training.robust.trades import trades

__all__ = [
    "ROBUST",
    "Contribution",
    "InnerAttack",
    "Objective",
    "attacked",
    "check",
    "free",
    "make_inner",
    "make_objective",
    "mixing",
    "resolve",
    "sam",
    "trades",
]
