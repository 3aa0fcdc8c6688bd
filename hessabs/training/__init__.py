"""Training: the only folder that owns a loop, files or a clock."""

from hessabs.training import callbacks, objectives, tasks
from hessabs.training.assemble import Parts, assemble
from hessabs.training.durability import Durability
from hessabs.training.evaluation import evaluate
from hessabs.training.look.advise import Advice, advise
from hessabs.training.look.predict import predict
from hessabs.training.loop import Result, fit
from hessabs.training.optimizers import Optimizer, OptimizerSettings, make_optimizer
from hessabs.training.schedules import make_schedule
from hessabs.training.settings import RunSettings
from hessabs.training.task import LossOutput, Task
from hessabs.training.trained import Trained, load_trained

__all__ = [
    "Advice",
    "Durability",
    "LossOutput",
    "Optimizer",
    "OptimizerSettings",
    "Parts",
    "Result",
    "RunSettings",
    "Task",
    "Trained",
    "advise",
    "assemble",
    "callbacks",
    "evaluate",
    "fit",
    "load_trained",
    "make_optimizer",
    "make_schedule",
    "objectives",
    "predict",
    "tasks",
]
