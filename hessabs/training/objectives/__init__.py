"""Robust training as objectives of the one training step: a file for each idea."""

from hessabs.training.objectives.free import free
from hessabs.training.objectives.inner import InnerAttack, make_inner
from hessabs.training.objectives.mixing import attacked, mixing
from hessabs.training.objectives.objective import Contribution, Objective, Share
from hessabs.training.objectives.sam import sam
from hessabs.training.objectives.trades import trades

__all__ = [
    "Contribution",
    "InnerAttack",
    "Objective",
    "Share",
    "attacked",
    "free",
    "make_inner",
    "mixing",
    "sam",
    "trades",
]
