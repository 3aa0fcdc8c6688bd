"""Image classification sets in memory: scikit-learn's digits, or any set prepared by TFDS.

TFDS (tensorflow-datasets) writes a set to disk once; files in its array_record format are read here
without TensorFlow, and nothing is ever downloaded. Everything is decoded at once into uint8 arrays,
0..255. The training step divides by 255 on the device, so a batch that a loss or an attack sees is
float32 in [0, 1].
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hessabs.data import encoded, folders, prepared


class Dataset(NamedTuple):
    """An image classification set in memory.

    Attributes:
        name: What it was loaded as.
        train: ``{"image": uint8 (N, H, W, C) in 0..255, "label": int32 (N,) in 0..num_classes-1}``.
        test: The same for the held-out examples. Both may be columns on disk (``hessabs.data.encoded``).
        num_classes: The number of classes.
    """

    name: str
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    num_classes: int
    class_names: tuple[str, ...] | None = None


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_test: int | None = None,
    train_split: str = "train",
    image_size: int | None = None,
) -> Dataset:
    """Load a data set into memory.

    ``"digits"`` is scikit-learn's embedded set: 1,797 images of 8x8x1, scaled to 0..255 by
    ``round(x * 255 / 16)``. Sorted by class (stably), every fifth example is a test example: 1,437
    to train on and 360 to test on, stratified to within one example a class; both keep the order
    of the file.

    Any other name is a set that TFDS has prepared in array_record format, read without TensorFlow:
    ``"cifar10"``, ``"fashion_mnist"``, ``"name/config"`` or ``"name:1.2.3"`` (the newest version
    when none is given). Its splits ``train`` and ``test`` are read; ``validation`` stands in for
    ``test`` where there is no such split. All images must be of one size, unless ``image_size`` says
    to which they are to be brought: then they stay encoded on disk and are decoded when they are
    used, by worker processes in a training run (see ``hessabs.data.pipeline``).

    Args:
        name: The name of the set.
        data_dir: The folder that holds prepared sets. By default the environment variable
            ``TFDS_DATA_DIR``, or else ``~/tensorflow_datasets``, as in TFDS itself.
        num_test: Keep the first ``num_test`` test examples alone; all of them by default.

        train_split: The split to train on, or several joined by ``+``: ``"extra"`` or
            ``"train+extra"`` of ``"svhn_cropped"``.
        image_size: The side of the images in use, cropped in the middle; None keeps images as they
            are, in memory.

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
    if name == "digits":
        if (train_split, image_size) != ("train", None):
            raise ValueError("`digits` has one training split and one size: leave train_split and image_size.")
        dataset = _load_digits()
    else:
        dataset = _load_prepared(name, folders.default_dir(data_dir), train_split, image_size)
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


def _load_prepared(name: str, data_dir: Path, train_split: str, image_size: int | None) -> Dataset:
    if image_size is not None and image_size < 1:
        raise ValueError(f"`image_size` must be at least 1, got {image_size}.")
    opened = prepared.open_set(name, folders.find_set(name, data_dir))
    held_out = "test" if "test" in opened.splits else "validation"
    parts = train_split.split("+")
    missing = [split for split in [*parts, held_out] if split not in opened.splits]
    if missing or len(set(parts)) < len(parts):
        wanted = " and ".join(repr(part) for part in parts)
        raise ValueError(
            f"{name!r} needs the splits {wanted} and 'test' (or 'validation'), got {sorted(opened.splits)}."
        )
    if image_size is not None:
        if len(parts) > 1:
            raise ValueError(f"With `image_size` one training split is read, got {train_split!r}.")
        train, test = (encoded.open_columns(opened, split, image_size) for split in (train_split, held_out))
    else:
        arrays = [_read(opened, split) for split in parts]
        if len({part["image"].shape[1:] for part in arrays}) > 1:
            raise ValueError(f"The splits {train_split!r} of {name!r} hold images of different shapes.")
        train = (
            {k: np.concatenate([part[k] for part in arrays]) for k in arrays[0]} if arrays[1:] else arrays[0]
        )
        test = _read(opened, held_out)
    return Dataset(name, train, test, opened.num_classes)


def _read(opened: prepared.Prepared, split: str) -> dict[str, np.ndarray]:
    source, where = prepared.open_split(opened, split), f"{opened.name}/{split}"
    records = prepared.read_records(source, opened.splits[split], where)
    return prepared.decode_all(records, len(source), opened.channels, opened.num_classes, where)


def check_images(dataset: Dataset) -> Dataset:
    """Refuse images and labels that no network of this package can be trained on.

    Args:
        dataset: A data set of the caller's own.

    Returns:
        The data set.

    Raises:
        ValueError: Images are not (N, height, width, channels), training and test images differ in
            shape, there are not as many labels, or a label is out of range.

    Example:
        >>> image = np.zeros((2, 3, 8, 8), np.uint8)
        >>> split = {"image": image, "label": np.zeros(2, np.int32)}
        >>> check_images(Dataset("mine", split, split, 10))
        Traceback (most recent call last):
        ...
        ValueError: Images of mine must be (N, height, width, channels) with 1 to 4 channels last, got
        (2, 3, 8, 8), which looks like channels first: transpose them with axes (0, 2, 3, 1).
    """
    for split in (dataset.train, dataset.test):
        image, label = split["image"], split["label"]
        if len(image.shape) != 4 or not 1 <= image.shape[-1] <= 4:
            first = len(image.shape) == 4 and 1 <= image.shape[1] <= 4
            hint = ", which looks like channels first: transpose them with axes (0, 2, 3, 1)" if first else ""
            raise ValueError(
                f"Images of {dataset.name} must be (N, height, width, channels) with 1 to 4 channels last, "
                f"got {image.shape}{hint}."
            )
        if image.shape[1:] != dataset.train["image"].shape[1:]:
            raise ValueError(
                f"Training and test images of {dataset.name} must have one shape, "
                f"got {dataset.train['image'].shape[1:]} and {image.shape[1:]}."
            )
        if len(label) != len(image):
            raise ValueError(f"{dataset.name} has {len(image)} images and {len(label)} labels.")
        if isinstance(label, np.ndarray) and len(label):
            low, high = int(label.min()), int(label.max())
            if low < 0 or high >= dataset.num_classes:
                raise ValueError(
                    f"Labels of {dataset.name} must lie in 0..{dataset.num_classes - 1}, got {low}..{high}."
                )
    return dataset
