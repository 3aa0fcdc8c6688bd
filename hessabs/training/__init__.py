"""The training loop of the command line and of the experiments; the only folder that owns files or a clock."""

from hessabs.training.config import Config
from hessabs.training.loop import Result, train
from hessabs.training.setup import Run, set_up

__all__ = ["Config", "Result", "Run", "set_up", "train"]
