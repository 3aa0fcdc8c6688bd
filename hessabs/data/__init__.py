"""Data: where the examples come from, and in which order a training run sees them."""

from hessabs.data.augment import AUGMENTATIONS, crop_flip
from hessabs.data.encoded import Column
from hessabs.data.folders import DatasetNotFoundError
from hessabs.data.gather import Gather
from hessabs.data.order import Position, Reader, epoch_order, micro_batches_per_epoch
from hessabs.data.pipeline import encoded_reader
from hessabs.data.source import Source, as_source
from hessabs.data.sources import Dataset, check_images, load
from hessabs.data.split import hold_out
from hessabs.data.stream import eval_batches, micro_batches, reader

__all__ = [
    "AUGMENTATIONS",
    "Column",
    "Dataset",
    "DatasetNotFoundError",
    "Gather",
    "Position",
    "Reader",
    "Source",
    "as_source",
    "check_images",
    "crop_flip",
    "encoded_reader",
    "epoch_order",
    "eval_batches",
    "hold_out",
    "load",
    "micro_batches",
    "micro_batches_per_epoch",
    "reader",
]
