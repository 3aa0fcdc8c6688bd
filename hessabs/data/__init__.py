"""Data: where the examples come from, and in which order a training run sees them."""

from hessabs.data.augment import AUGMENTATIONS, crop_flip
from hessabs.data.catalog import DatasetNotFoundError
from hessabs.data.datasets import Dataset, check_examples, check_images, load
from hessabs.data.images import read_image
from hessabs.data.order import Position, Reader, epoch_order, micro_batches_per_epoch
from hessabs.data.source import Arrays, Source, as_source, fingerprint, hold_out, in_memory, subset
from hessabs.data.stream import Gather, eval_batches, micro_batches, reader
from hessabs.data.tokens import token_source

__all__ = [
    "AUGMENTATIONS",
    "Arrays",
    "Dataset",
    "DatasetNotFoundError",
    "Gather",
    "Position",
    "Reader",
    "Source",
    "as_source",
    "check_examples",
    "check_images",
    "crop_flip",
    "epoch_order",
    "eval_batches",
    "fingerprint",
    "hold_out",
    "in_memory",
    "load",
    "micro_batches",
    "micro_batches_per_epoch",
    "read_image",
    "reader",
    "subset",
    "token_source",
]
