"""Sets that TFDS has prepared on disk, in array_record format: opened and decoded, without TensorFlow."""

import dataclasses
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hessabs.data.images import decode

_READ_SIZE = 4096  # records in one call of the reader: bounds the memory that encoded images take
_TFDS_NEEDS = ("array_record.python.array_record_module", "importlib_resources", "PIL.Image", "tree")


def import_tfds(name: str) -> Any:
    """Import TFDS with all that reading the set ``name`` needs: it loads some of that only later."""
    try:
        for module in _TFDS_NEEDS:
            importlib.import_module(module)
        return importlib.import_module("tensorflow_datasets")
    except ImportError as e:
        raise ImportError(
            f"The data set {name!r} is read with tensorflow_datasets, and {e}: install the extra "
            "`hessabs[data]`, or use `--dataset digits`."
        ) from e


class Prepared(NamedTuple):
    """A prepared image classification set, opened."""

    name: str
    folder: Path
    builder: Any  # of TFDS
    channels: int | None  # of an image, if all have the same
    num_classes: int
    class_names: tuple[str, ...] | None
    splits: dict[str, list[tuple[Path, int]]]  # the shards of each split, with the examples of each


def open_set(name: str, folder: Path) -> Prepared:
    """Open the prepared version of a set that lies in a folder; refuse what is no set of images and labels."""
    tfds = import_tfds(name)
    builder = tfds.builder_from_directory(folder)
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise ValueError(
            f"{name!r} in {folder} is prepared as {', '.join(formats)}, which is not read here: "
            "prepare it again with `--file_format=array_record`."
        )
    features = check_features(name, builder)
    splits = {
        split: [(Path(p), n) for p, n in zip(info.filepaths, info.shard_lengths, strict=True)]
        for split, info in builder.info.splits.items()
    }
    label = features["label"]
    names = tuple(label.names) if label.num_classes else None
    return Prepared(name, folder, builder, features["image"].shape[-1], label.num_classes, names, splits)


def check_features(name: str, builder: Any) -> dict[str, Any]:
    """Return the features of a set of TFDS, prepared or not; refuse what is no set of images and labels."""
    tfds = import_tfds(name)
    features = dict(builder.info.features.items())
    is_image = isinstance(features.get("image"), tfds.features.Image)
    if not is_image or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} is no image classification set: it needs an Image feature 'image' and a "
            f"ClassLabel feature 'label', got {', '.join(sorted(features))}."
        )
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise ValueError(f"Images of {name!r} must be uint8, got {np.dtype(features['image'].np_dtype)}.")
    return features


def read_split(opened: Prepared, split: str, resize: int | None) -> dict[str, np.ndarray]:
    """Decode a split into memory: image, uint8 (N, H, W, C), and label, int32 (N,)."""
    # One thread: decoding a small image is mostly Python, and a second thread makes it slower.
    source, where = _open_split(opened, split), f"{opened.name}/{split}"
    images = np.empty((0,), np.uint8)
    labels = np.empty((len(source),), np.int32)
    for i, record in enumerate(_records(source, opened.splits[split], where)):
        image = _decode(record["image"], opened.channels, i, where, size=resize, share=1)
        if i == 0:
            images = np.empty((len(source), *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"All images must have one shape: image 0 of {where} is {images.shape[1:]}, "
                f"image {i} is {image.shape}. Bring them to one size with `--resize` or `--image_size`."
            )
        labels[i] = _check_label(record.get("label"), opened.num_classes, i, where)
        images[i] = image
    return {"image": images, "label": labels}


@dataclasses.dataclass
class Records:
    """A split that stays on disk: its images are decoded and brought to ``size`` when they are asked for.

    It can be sent to another process, where it opens the files anew.
    """

    folder: Path
    name: str
    split: str
    number: int
    size: int
    channels: int
    num_classes: int | None
    crops: ClassVar[bool] = True

    def __len__(self) -> int:
        return self.number

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_source"}

    def content(self) -> bytes:
        """Say which examples these are, without reading them."""
        return f"{self.name} {self.folder.name} {self.split} {self.size}".encode()

    def __getitem__(self, index: int, bits: int | None = None) -> dict[str, Any]:
        where = f"{self.name}/{self.split}"
        if "_source" not in self.__dict__:
            self._source = _open_split(open_set(self.name, self.folder), self.split)
        record = self._source[index]
        label = _check_label(record.get("label"), self.num_classes, index, where)
        image = _decode(record["image"], self.channels, index, where, size=self.size, bits=bits)
        return {"image": image, "label": np.int32(label)}


def open_records(opened: Prepared, split: str, size: int) -> Records:
    """Open a split without reading it; images are to be brought to ``size``."""
    for path, length in opened.splits[split]:
        if not path.exists():
            raise ValueError(
                f"A shard of {opened.name}/{split} is missing: {path} ({length} examples expected). "
                "Prepare the set again."
            )
    number = sum(length for _, length in opened.splits[split])
    channels = 1 if opened.channels == 1 else 3
    return Records(opened.folder, opened.name, split, number, size, channels, opened.num_classes)


def has_labels(opened: Prepared, split: str) -> bool:
    """Tell whether the first example of a split has a label; -1 stands for none."""
    records = _records(_open_split(opened, split), opened.splits[split], f"{opened.name}/{split}")
    label = next(records, {}).get("label")
    return label is not None and label >= 0


def _open_split(opened: Prepared, split: str) -> Any:
    from tensorflow_datasets import decode as decoders

    encoded = {"image": decoders.SkipDecoding()}
    return opened.builder.as_data_source(split, decoders=encoded, file_format="array_record")


def _records(source: Any, shards: list[tuple[Path, int]], where: str) -> Iterator[dict[str, Any]]:
    start = 0
    for path, length in shards:
        stop = start + length
        while start < stop:
            indices = range(start, min(start + _READ_SIZE, stop))
            try:
                records = source.__getitems__(indices)
            except (IndexError, OSError, RuntimeError, ValueError) as e:
                what = "is damaged" if path.exists() else "is missing"
                said = f"{length} examples expected; the reader says: {' '.join(str(e).split())}"
                raise ValueError(f"A shard of {where} {what}: {path} ({said}). Prepare the set again.") from e
            yield from records
            start = indices.stop


def _decode(data: bytes, channels: int | None, number: int, where: str, **how: Any) -> np.ndarray:
    try:
        return decode(data, channels, **how)
    except ValueError as e:
        raise ValueError(f"Image {number} of {where} cannot be decoded: {e}") from e


def _check_label(label: Any, num_classes: int | None, number: int, where: str) -> int:
    if label is None or label < 0 or (num_classes is not None and label >= num_classes):
        upper = "num_classes-1" if num_classes is None else num_classes - 1
        got = "no label" if label is None else label
        raise ValueError(
            f"Labels must lie in 0..{upper}: example {number} of {where} has {got}. "
            "A split without labels cannot be used."
        )
    return int(label)
