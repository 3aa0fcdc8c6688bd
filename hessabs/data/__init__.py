"""Data: where the examples come from, and in which order a training run sees them."""

from hessabs.data.sources import Dataset, DatasetNotFoundError, load
from hessabs.data.split import hold_out
from hessabs.data.stream import (
    Position,
    Reader,
    epoch_order,
    eval_batches,
    micro_batches,
    micro_batches_per_epoch,
    reader,
)

__all__ = [
    "Dataset",
    "DatasetNotFoundError",
    "Position",
    "Reader",
    "epoch_order",
    "eval_batches",
    "hold_out",
    "load",
    "micro_batches",
    "micro_batches_per_epoch",
    "reader",
]
