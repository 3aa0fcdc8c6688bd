"""Image classification sets in memory: scikit-learn's digits, or any set prepared by TFDS.

TFDS (tensorflow-datasets) writes a set to disk once; files in its array_record format are read here
without TensorFlow, and nothing is ever downloaded. Everything is decoded at once into uint8 arrays,
0..255. The training step divides by 255 on the device, so a batch that a loss or an attack sees is
float32 in [0, 1].
"""

import importlib
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_READ_SIZE = 4096  # records in one call of the reader: bounds the memory that encoded images take
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for each number of channels
_TFDS_NEEDS = (
    "array_record.python.array_record_module",
    "importlib_resources",
    "PIL.Image",
    "tree",
)


class DatasetNotFoundError(ValueError):
    """No data set of that name: it is not built in, and not prepared in the data folder."""


class Dataset(NamedTuple):
    """An image classification set in memory.

    Attributes:
        name: What it was loaded as.
        train: ``{"image": uint8 (N, H, W, C) in 0..255, "label": int32 (N,) in 0..num_classes-1}``.
        test: The same for the held-out examples.
        num_classes: The number of classes.
    """

    name: str
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    num_classes: int


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None, num_test: int | None = None) -> Dataset:
    """Load a data set into memory.

    ``"digits"`` is scikit-learn's embedded set: 1,797 images of 8x8x1, scaled to 0..255 by
    ``round(x * 255 / 16)``. Sorted by class (stably), every fifth example is a test example: 1,437
    to train on and 360 to test on, stratified to within one example a class; both keep the order
    of the file.

    Any other name is a set that TFDS has prepared in array_record format, read without TensorFlow:
    ``"cifar10"``, ``"fashion_mnist"``, ``"name/config"`` or ``"name:1.2.3"`` (the newest version
    when none is given). Its splits ``train`` and ``test`` are read; ``validation`` stands in for
    ``test`` where there is no such split. All images must be of one size.

    Args:
        name: The name of the set.
        data_dir: The folder that holds prepared sets. By default the environment variable
            ``TFDS_DATA_DIR``, or else ``~/tensorflow_datasets``, as in TFDS itself.
        num_test: Keep the first ``num_test`` test examples alone; all of them by default.

    Returns:
        A ``Dataset`` of uint8 images (N, H, W, C) in 0..255 and int32 labels (N,).

    Raises:
        DatasetNotFoundError: The name is not ``"digits"`` and nothing of that name is prepared.
        ImportError: A package that reads the set is missing.
        ValueError: The set is in another format, is no image classification set, has images of
            differing shapes or labels out of range, or a shard of it is missing or damaged; or
            ``num_test`` is out of range.

    Example:
        >>> digits = load("digits", num_test=100)
        >>> digits.train["image"].shape, digits.test["image"].shape, digits.num_classes
        ((1437, 8, 8, 1), (100, 8, 8, 1), 10)
        >>> digits.train["image"].dtype, digits.train["label"].dtype
        (dtype('uint8'), dtype('int32'))
    """
    dataset = _load_digits() if name == "digits" else _load_prepared(name, _data_dir(data_dir))
    if num_test is None:
        return dataset
    available = len(dataset.test["label"])
    if not 1 <= num_test <= available:
        raise ValueError(
            f"`num_test` must lie in [1, {available}], the test examples of {name!r}, got {num_test}."
        )
    return dataset._replace(test={k: v[:num_test] for k, v in dataset.test.items()})


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise ImportError(
            f"The data set 'digits' needs scikit-learn ({e}): install the extra `hessabs[train]`."
        ) from e
    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = raw.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True

    def part(mask: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": images[mask], "label": labels[mask]}

    return Dataset("digits", part(~is_test), part(is_test), 10)


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    # Read the variable now: TFDS itself reads it once, when it is imported.
    default = os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(data_dir if data_dir is not None else default).expanduser()


def _load_prepared(name: str, data_dir: Path) -> Dataset:
    folder = _find(name, data_dir)
    tfds = _import_tfds(name)
    builder = tfds.builder_from_directory(folder)
    formats = sorted(f.value for f in builder.info.available_file_formats())
    if "array_record" not in formats:
        raise ValueError(
            f"{name!r} in {folder} is prepared as {', '.join(formats)}, which is not read here: "
            "prepare it again with `--file_format=array_record`."
        )
    splits = builder.info.splits
    features = dict(builder.info.features.items())
    is_image = isinstance(features.get("image"), tfds.features.Image)
    if not is_image or not isinstance(features.get("label"), tfds.features.ClassLabel):
        raise ValueError(
            f"{name!r} is no image classification set: it needs an Image feature 'image' and a "
            f"ClassLabel feature 'label', got {', '.join(sorted(features))}."
        )
    if np.dtype(features["image"].np_dtype) != np.uint8:
        raise ValueError(f"Images of {name!r} must be uint8, got {np.dtype(features['image'].np_dtype)}.")
    num_classes = features["label"].num_classes
    held_out = "test" if "test" in splits else "validation"
    if "train" not in splits or held_out not in splits:
        raise ValueError(
            f"{name!r} needs the splits 'train' and 'test' (or 'validation'), got {sorted(splits)}."
        )

    def part(split: str) -> dict[str, np.ndarray]:
        source = builder.as_data_source(
            split, decoders={"image": tfds.decode.SkipDecoding()}, file_format="array_record"
        )
        shards = list(zip(splits[split].filepaths, splits[split].shard_lengths, strict=True))
        where = f"{name}/{split}"
        return _decode(_records(source, shards, where), len(source), features, num_classes, where)

    return Dataset(name, part("train"), part(held_out), num_classes)


def _import_tfds(name: str) -> Any:
    """Import TFDS with all that reading needs (it declares and loads some of that only later)."""
    try:
        for module in _TFDS_NEEDS:
            importlib.import_module(module)
        return importlib.import_module("tensorflow_datasets")
    except ImportError as e:
        raise ImportError(
            f"The data set {name!r} is read with tensorflow_datasets, and {e}: install the extra "
            "`hessabs[data]`, or use `--dataset digits`."
        ) from e


def _find(name: str, data_dir: Path) -> Path:
    """Return the folder of the set, ``data_dir/name[/config]/version``; raise when there is none.

    TFDS can look for it too, but imports the code of every set that is named so, and that may
    import TensorFlow.
    """
    match = re.fullmatch(r"(\w+)(?:/([\w.+-]+))?(?::([\d.]+))?", name)
    if match:
        base, config, version = match.groups()
        root = data_dir / base / config if config else data_dir / base
        found = _versions(root, version)
        if not found and not config:
            configs = [d for d in _folders(root) if _versions(d, version)]
            if len(configs) > 1:
                listed = ", ".join(repr(f"{base}/{d.name}") for d in configs)
                raise DatasetNotFoundError(
                    f"Data set {name!r} has several configs in {data_dir}: use one of {listed}."
                )
            found = _versions(configs[0], version) if configs else []
        if found:
            return found[-1]
    prepared = [d.name for d in _folders(data_dir) if any(map(_versions, [d, *_folders(d)]))]
    there = ", ".join(prepared) or ("none" if data_dir.is_dir() else "there is no such folder")
    raise DatasetNotFoundError(
        f"No data set {name!r} in {data_dir} (prepared there: {there}). Use `--dataset digits`, "
        "name the folder of prepared sets with `--data_dir` (or TFDS_DATA_DIR), or prepare it: "
        "install the extra `hessabs[prepare]` and run "
        f"`tfds build {name} --file_format=array_record`."
    )


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _versions(path: Path, version: str | None = None) -> list[Path]:
    """Return the prepared versions in a folder, oldest first."""
    found = [
        (tuple(map(int, match.groups())), p)
        for p in _folders(path)
        if (match := _VERSION.fullmatch(p.name)) and (p / "features.json").is_file()
    ]
    return [p for _, p in sorted(found) if version in (None, p.name)]


def _records(source: Any, shards: list[tuple[Any, int]], where: str) -> Iterator[dict[str, Any]]:
    """Yield the records in order; an error of the reader becomes one that names the shard."""
    start = 0
    for path, length in shards:
        stop = start + length
        while start < stop:
            indices = range(start, min(start + _READ_SIZE, stop))
            try:
                records = source.__getitems__(indices)
            except (IndexError, OSError, RuntimeError, ValueError) as e:
                what = "is damaged" if Path(path).exists() else "is missing"
                reason = " ".join(str(e).split())
                raise ValueError(
                    f"A shard of {where} {what}: {path} ({length} examples expected; "
                    f"the reader says: {reason}). Prepare the set again."
                ) from e
            yield from records
            start = indices.stop


def _decode(
    records: Iterator[dict[str, Any]],
    num_examples: int,
    features: Any,
    num_classes: int | None,
    where: str,
) -> dict[str, np.ndarray]:
    """Decode all records into two arrays, allocated when the first image tells its shape."""
    # One thread: decoding a small image is mostly Python, and a second thread makes it slower.
    to_array = _image_decoder(features["image"].shape[-1])
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
                f"image {i} is {image.shape}. Resize them to one size first."
            )
        label = record.get("label")
        if label is None or label < 0 or (num_classes is not None and label >= num_classes):
            upper = "num_classes-1" if num_classes is None else num_classes - 1
            got = "no label" if label is None else label
            raise ValueError(
                f"Labels must lie in 0..{upper}: example {i} of {where} has {got}. "
                "A split without labels cannot be used."
            )
        images[i] = image
        labels[i] = label
    return {"image": images, "label": labels}


def _image_decoder(channels: int | None) -> Callable[[bytes], np.ndarray]:
    from PIL import Image

    mode = _MODES.get(channels) if channels else None

    def to_array(encoded: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(encoded)) as image:
            target = mode or ("L" if image.mode == "L" else "RGB")
            pixels = np.asarray(image if image.mode == target else image.convert(target))
        return pixels if pixels.ndim == 3 else pixels[..., None]

    return to_array
