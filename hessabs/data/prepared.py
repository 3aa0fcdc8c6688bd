"""Sets that TFDS has prepared on disk, in array_record format: opened and decoded, without TensorFlow."""

import importlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_READ_SIZE = 4096  # records in one call of the reader: bounds the memory that encoded images take
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for each number of channels
_TFDS_NEEDS = (
    "array_record.python.array_record_module",
    "importlib_resources",
    "PIL.Image",
    "tree",
)


def import_tfds(name: str) -> Any:
    """Import TFDS with all that reading needs (it declares and loads some of that only later).

    Args:
      name: Of the set that is wanted, for the error.

    Returns:
      The module ``tensorflow_datasets``.

    Raises:
      ImportError: If something is not installed, naming the extra.
    """
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
    splits: dict[str, list[tuple[Path, int]]]  # the shards of each split, with the examples of each


def open_set(name: str, folder: Path) -> Prepared:
    """Open a prepared set.

    Args:
        name: Its name, for messages.
        folder: The folder of a version.

    Returns:
        The set.

    Raises:
        ImportError: A package that reads the set is missing.
        ValueError: It is in another format, or no image classification set.
    """
    tfds = import_tfds(name)
    builder = tfds.builder_from_directory(folder)
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise ValueError(
            f"{name!r} in {folder} is prepared as {', '.join(formats)}, which is not read here: "
            "prepare it again with `--file_format=array_record`."
        )
    features = dict(builder.info.features.items())
    is_image = isinstance(features.get("image"), tfds.features.Image)
    if not is_image or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} is no image classification set: it needs an Image feature 'image' and a "
            f"ClassLabel feature 'label', got {', '.join(sorted(features))}."
        )
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise ValueError(f"Images of {name!r} must be uint8, got {np.dtype(features['image'].np_dtype)}.")
    splits = {
        split: [(Path(p), n) for p, n in zip(info.filepaths, info.shard_lengths, strict=True)]
        for split, info in builder.info.splits.items()
    }
    return Prepared(name, folder, builder, features["image"].shape[-1], features["label"].num_classes, splits)


def open_split(prepared: Prepared, split: str) -> Any:
    """Open the records of a split, a sequence of dicts whose images are still encoded.

    Args:
      prepared: A set.
      split: Its name in the set.

    Returns:
      A data source of TFDS, read by index.
    """
    from tensorflow_datasets import decode

    return prepared.builder.as_data_source(
        split, decoders={"image": decode.SkipDecoding()}, file_format="array_record"
    )


def read_records(source: Any, shards: list[tuple[Path, int]], where: str) -> Iterator[dict[str, Any]]:
    """Yield the records in order; an error of the reader becomes one that names the shard.

    Args:
      source: From ``open_split``.
      shards: File and number of examples of each shard, in order.
      where: What is read, for the error.

    Yields:
      The records.

    Raises:
      ValueError: If a shard is damaged or missing.
    """
    start = 0
    for path, length in shards:
        stop = start + length
        while start < stop:
            indices = range(start, min(start + _READ_SIZE, stop))
            try:
                records = source.__getitems__(indices)
            except (IndexError, OSError, RuntimeError, ValueError) as e:
                what = "is damaged" if path.exists() else "is missing"
                reason = " ".join(str(e).split())
                raise ValueError(
                    f"A shard of {where} {what}: {path} ({length} examples expected; "
                    f"the reader says: {reason}). Prepare the set again."
                ) from e
            yield from records
            start = indices.stop


def decode_all(
    records: Iterator[dict[str, Any]],
    num_examples: int,
    channels: int | None,
    num_classes: int | None,
    where: str,
) -> dict[str, np.ndarray]:
    """Decode all records into two arrays, allocated when the first image tells its shape.

    Args:
      records: From ``read_records``.
      num_examples: How many there are.
      channels: Of the images, or None for those of the file.
      num_classes: Labels must lie below it; None if that is not known.
      where: What is decoded, for the errors.

    Returns:
      image, shape (num_examples, height, width, channels), uint8, and label, shape (num_examples,), int32.

    Raises:
      ValueError: If an image cannot be decoded or has another shape, or a label is out of range.
    """
    # One thread: decoding a small image is mostly Python, and a second thread makes it slower.
    to_array = _image_decoder(channels)
    images = np.empty((0,), np.uint8)
    labels = np.empty((num_examples,), np.int32)
    for i, record in enumerate(records):
        try:
            image = to_array(record["image"])
        except OSError as e:
            raise ValueError(f"Image {i} of {where} cannot be decoded: {e}") from e
        if i == 0:
            images = np.empty((num_examples, *image.shape), np.uint8)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"All images must have one shape: image 0 of {where} is {images.shape[1:]}, "
                f"image {i} is {image.shape}. Bring them to one size with `--image_size`."
            )
        labels[i] = check_label(record.get("label"), num_classes, i, where)
        images[i] = image
    return {"image": images, "label": labels}


def check_label(label: Any, num_classes: int | None, number: int, where: str) -> int:
    """Return a label that lies in its range; raise ``ValueError`` for another, naming the example.

    Args:
      label: An integer, or None where there is none.
      num_classes: Labels must lie below it; None if that is not known.
      number: Of the example.
      where: What is read, for the error.

    Returns:
      The label.

    Raises:
      ValueError: If it is missing or out of range.
    """
    if label is None or label < 0 or (num_classes is not None and label >= num_classes):
        upper = "num_classes-1" if num_classes is None else num_classes - 1
        got = "no label" if label is None else label
        raise ValueError(
            f"Labels must lie in 0..{upper}: example {number} of {where} has {got}. "
            "A split without labels cannot be used."
        )
    return int(label)


def _image_decoder(channels: int | None) -> Callable[[bytes], np.ndarray]:
    from PIL import Image

    mode = _MODES.get(channels) if channels else None

    def to_array(encoded: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(encoded)) as image:
            target = mode or ("L" if image.mode == "L" else "RGB")
            pixels = np.asarray(image if image.mode == target else image.convert(target))
        return pixels if pixels.ndim == 3 else pixels[..., None]

    return to_array
