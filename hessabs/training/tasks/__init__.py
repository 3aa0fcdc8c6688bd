"""A task in one line, of a Linen, NNX or Equinox module, or of plain functions."""

from hessabs.training.tasks.equinox import equinox
from hessabs.training.tasks.linen import linen
from hessabs.training.tasks.losses import Mean, classification, next_token
from hessabs.training.tasks.nnx import nnx
from hessabs.training.tasks.plain import plain

__all__ = ["Mean", "classification", "equinox", "linen", "next_token", "nnx", "plain"]
