"""Training: the only folder that owns a loop, files or a clock."""

from hessabs.training import objectives, tasks
from hessabs.training.durability import Durability
from hessabs.training.loop import Result, fit
from hessabs.training.settings import RunSettings
from hessabs.training.task import LossOutput, Task

__all__ = ["Durability", "LossOutput", "Result", "RunSettings", "Task", "fit", "objectives", "tasks"]
