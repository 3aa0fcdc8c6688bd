"""A split that stays on disk: encoded images of any size, decoded when they are asked for.

``image`` and ``label`` are columns that look like arrays of shape (N, size, size, C) and (N,): indexing them
reads and decodes just those examples, cropped in the middle, without augmentation. A training run reads them
through ``hessabs.data.pipeline``, in worker processes.
"""

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from hessabs.data import augment, prepared

_THREADS = 4


@dataclasses.dataclass
class Records:
    """The records of a split. It can be sent to another process, where it opens the files anew.

    Attributes:
        folder: The folder of the prepared set.
        name: The name of the set, for messages.
        split: The split.
        examples: The numbers of the records that belong to it, int64 (N,).
        size: The side to which images are brought.
        channels: The channels of an image.
        num_classes: The number of classes, or None.
    """

    folder: Path
    name: str
    split: str
    examples: np.ndarray
    size: int
    channels: int
    num_classes: int | None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_source"}

    def decode(self, place: int, *, augmentation: str = "none", bits: int = 0) -> tuple[np.ndarray, int]:
        """Read and decode an example.

        Args:
            place: Its number among ``examples``.
            augmentation: ``"resized_crop"``, or anything else for the middle of the image.
            bits: 64 random bits, for ``"resized_crop"``.

        Returns:
            (image uint8 (size, size, C), label).

        Raises:
            ValueError: The image cannot be decoded, or the label is out of range.
        """
        from PIL import Image

        number = int(self.examples[place])
        where = f"{self.name}/{self.split}"
        if "_source" not in self.__dict__:
            self._source = prepared.open_split(prepared.open_set(self.name, self.folder), self.split)
        record = self._source[number]
        label = prepared.check_label(record.get("label"), self.num_classes, number, where)
        try:
            with Image.open(io.BytesIO(record["image"])) as image:
                # JPEG can be decoded at 1/2, 1/4, 1/8 of its size: ask for no more than is needed.
                if augmentation != "resized_crop":
                    image.draft(None, (2 * self.size, 2 * self.size))
                pixels = image.convert("L" if self.channels == 1 else "RGB")
        except OSError as e:
            raise ValueError(f"Image {number} of {where} cannot be decoded: {e}") from e
        if augmentation == "resized_crop":
            pixels = augment.resized_crop(pixels, self.size, bits)
        else:
            pixels = augment.centre_crop(pixels, self.size)
        return np.asarray(pixels).reshape(self.size, self.size, self.channels), label


class Column:
    """A column of a split on disk, indexed as an array is.

    Args:
        records: The split.
        name: ``"image"`` or ``"label"``.
    """

    def __init__(self, records: Records, name: str) -> None:
        self.records, self.name = records, name
        image = (records.size, records.size, records.channels) if name == "image" else ()
        self.shape: tuple[int, ...] = (len(records.examples), *image)
        self.dtype = np.dtype(np.uint8 if name == "image" else np.int32)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        places = np.arange(len(self))[key]
        rows = self._read(np.ravel(places))
        return rows.reshape(*np.shape(places), *self.shape[1:])

    def take(self, indices: Any, axis: int = 0, out: None = None, mode: str = "raise") -> np.ndarray:
        """Do what ``numpy.take`` asks an array to do."""
        return self[np.asarray(indices)]

    def subset(self, mask: np.ndarray) -> "Column":
        """Keep the examples of a mask, without reading them."""
        return Column(dataclasses.replace(self.records, examples=self.records.examples[mask]), self.name)

    def content(self) -> bytes:
        """Say which examples these are, without reading them: set, version, split, numbers and size."""
        records = self.records
        name = f"{records.name} {records.folder.name} {records.split} {records.size} {self.name}"
        return name.encode() + records.examples.tobytes()

    def _read(self, places: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes outside of Python's lock
            read = list(pool.map(self.records.decode, places))
        index = 0 if self.name == "image" else 1
        return np.array([row[index] for row in read], self.dtype).reshape(len(places), *self.shape[1:])


def open_columns(opened: prepared.Prepared, split: str, size: int) -> dict[str, Any]:
    """Open a split without reading it.

    Args:
        opened: The set.
        split: The split.
        size: The side to which images are brought.

    Returns:
        ``{"image": Column, "label": Column}``, in place of the arrays of a resident set.

    Raises:
        ValueError: A shard is missing.
    """
    for path, length in opened.splits[split]:
        if not path.exists():
            raise ValueError(
                f"A shard of {opened.name}/{split} is missing: {path} ({length} examples expected). "
                "Prepare the set again."
            )
    number = sum(length for _, length in opened.splits[split])
    channels = 1 if opened.channels == 1 else 3
    records = Records(opened.folder, opened.name, split, np.arange(number), size, channels, opened.num_classes)
    return {name: Column(records, name) for name in ("image", "label")}
