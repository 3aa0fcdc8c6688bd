"""Data sets by name: scikit-learn's digits, any image classification set of TFDS, a folder of images, or text.

Nothing is downloaded here: ``hessabs train`` and ``hessabs data prepare`` do that. Images are uint8, 0..255;
the training step divides by 255 on the device, so a batch that a loss or an attack sees is float32 in [0, 1].
"""

import functools
import importlib.util
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hessabs.checks import require
from hessabs.data import prepared
from hessabs.data.catalog import default_dir, find_set
from hessabs.data.image_folder import load_folder
from hessabs.data.source import Arrays, Examples, Source, View, as_source, subset
from hessabs.data.text import LENGTH, is_text, load_text

_FOLDER = "folder:"


class Dataset(NamedTuple):
    """An image classification set, or text; ``train`` and ``test`` are what ``as_source`` takes."""

    name: str  # what it was loaded as
    train: Any  # {"image": uint8 (H, W, C), "label": int32 below num_classes}, {"tokens": int32 (length + 1,)}
    test: Any  # the held-out examples
    num_classes: int
    class_names: tuple[str, ...] | None = None
    facts: Mapping[str, Any] = {}


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    num_test: int | None = None,
    train_split: str = "train",
    image_size: int | None = None,
    resize: int | None = None,
    sequence_length: int | None = None,
    vocabulary: str | None = None,
) -> Dataset:
    """Load a data set into memory, or open one that is decoded when it is used.

    * ``"digits"``: scikit-learn's 1,797 images of 8x8x1, scaled to 0..255 by ``round(x * 255 / 16)``. Sorted by
      class (stably), every fifth is a test example: 1,437 to train on and 360 to test on, in the file's order.
    * ``"folder:PATH"``: a folder of PNG or JPEG images for each class, of which every fifth by name is a test
      example; or two folders of such folders, ``train`` and ``test`` (``val`` or ``validation`` where there is
      no ``test``, and beside it they are not read).
    * ``"text:PATH"``, a text file in UTF-8, or ``"stdlib"``, the source of Python's standard library: sequences
      of characters, of which the last tenth is test. One that is not among the most common 95 is unknown.
    * Any other name: a set that TFDS has prepared in array_record format, read without TensorFlow:
      ``"cifar10"``, ``"name/config"`` or ``"name:1.2.3"`` (without it the newest version). Where there is no
      split ``test``, ``validation`` stands in for it.

    All images must be of one size, unless ``resize`` or ``image_size`` says to which they are to be brought,
    and without ``image_size`` of one number of channels. With ``image_size`` they stay encoded on disk and are
    decoded when they are used, by threads or worker processes in a training run: the middle of seven eighths of
    the short side, or a random crop (``augmentation="resized_crop"``); grey images of a folder whose first is
    RGB become RGB.

    Args:
        name: The name of the set.
        data_dir: The folder of prepared sets; by default that of TFDS: the environment variable
            ``TFDS_DATA_DIR``, or else ``~/tensorflow_datasets``.
        num_test: Keep so many test examples, the first ones, or of a folder some from all over it.
        train_split: The split to train on, or several joined by ``+``: ``"train+extra"`` of ``"svhn_cropped"``.
        image_size: The side of the images in use, decoded when used.
        resize: The side to which images are resized as they are loaded: the middle of the whole short side.
        sequence_length: Characters that an example of a text predicts; 64 by default.
        vocabulary: The characters of a text that are known, where they are not to be its own: those of another.

    Returns:
        A ``Dataset`` of sources.

    Raises:
        DatasetNotFoundError: Nothing of that name is built in or prepared, or there is no such folder or file.
        ImportError: A package that reads the set is missing.
        ValueError: The set is in another format, damaged or no set of images in two or more classes; images
            differ in shape or cannot be read; labels or ``num_test`` are out of range.

    Example:
        >>> digits = load("digits", num_test=100)
        >>> digits.train["image"].shape, digits.test["image"].shape, digits.num_classes
        ((1437, 8, 8, 1), (100, 8, 8, 1), 10)
    """
    sides = {"image_size": image_size, "resize": resize}
    require("be at least 1", **{name: side for name, side in sides.items() if side is not None})
    if image_size and resize:
        raise ValueError(
            f"Images are brought to a size when loaded (`resize`, {resize}) or when used "
            f"(`image_size`, {image_size}): name one of them."
        )
    is_folder = name.startswith(_FOLDER)
    if is_text(name):
        for option, of_images in (("image_size", image_size), ("resize", resize)):
            if of_images:
                raise ValueError(f"`{name}` is text: leave {option}, got {of_images}.")
    elif sequence_length is not None or vocabulary is not None:
        raise ValueError(f"`{name}` is not text: leave sequence_length and vocabulary.")
    if (name == "digits" or is_folder or is_text(name)) and train_split != "train":
        raise ValueError(f"`{name}` has no splits by name: leave train_split, got {train_split!r}.")
    if name == "digits":
        if image_size or resize:
            raise ValueError("`digits` has images of one size: leave image_size and resize.")
        dataset = _load_digits()
    elif is_folder:
        train, test, names = load_folder(name.removeprefix(_FOLDER), image_size, resize)
        dataset = Dataset(name, train, test, len(names), names)
    elif is_text(name):
        length = LENGTH if sequence_length is None else sequence_length
        text = load_text(name, length, vocabulary)
        names = (*text.vocabulary, "unknown")
        dataset = Dataset(name, text.train, text.test, len(names), names, text.facts)
    else:
        dataset = _load_prepared(name, data_dir, train_split, image_size, resize)
    if num_test is None:
        return dataset
    available = len(dataset.test)
    if not 1 <= num_test <= available:
        raise ValueError(
            f"`num_test` must lie in [1, {available}], the test examples of {name!r}, got {num_test}."
        )
    kept = np.linspace(0, available - 1, num_test).astype(np.int64) if is_folder else np.arange(num_test)
    return dataset._replace(test=subset(dataset.test, kept))


def located(name: str) -> str:
    """Return the name of a data set with its path, if it has one, from the root: the same from every folder.

    >>> located("digits"), located("text:/usr/share/words")
    ('digits', 'text:/usr/share/words')
    """
    kind, has_path, path = name.partition(":")
    return f"{kind}:{pathlib.Path(path).expanduser().absolute()}" if has_path else name


def _load_digits() -> Dataset:
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise ImportError("The data set 'digits' needs scikit-learn: install the extra `hessabs[train]`.")
    # The file that its `load_digits` reads: to import that takes longer than most runs on it.
    file = pathlib.Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    images = np.round(rows[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = rows[:, -1].astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True

    def part(mask: np.ndarray) -> Arrays:
        return Arrays({"image": images[mask], "label": labels[mask]})

    return Dataset("digits", part(~is_test), part(is_test), 10, tuple("0123456789"))


def _load_prepared(
    name: str,
    data_dir: str | os.PathLike[str] | None,
    train_split: str,
    image_size: int | None,
    resize: int | None,
) -> Dataset:
    opened, parts, held_out = _open_prepared(name, data_dir, train_split)
    train: Source
    test: Source
    if image_size is not None:
        if len(parts) > 1:
            raise ValueError(f"With `image_size` one training split is read, got {train_split!r}.")
        train, test = (
            Examples(prepared.open_records(opened, split, image_size)) for split in (train_split, held_out)
        )
    else:
        arrays = [prepared.read_split(opened, split, resize) for split in parts]
        if len({part["image"].shape[1:] for part in arrays}) > 1:
            raise ValueError(f"The splits {train_split!r} of {name!r} hold images of different shapes.")
        train = Arrays(
            {k: np.concatenate([part[k] for part in arrays]) for k in arrays[0]} if arrays[1:] else arrays[0]
        )
        test = Arrays(prepared.read_split(opened, held_out, resize))
    return Dataset(name, train, test, opened.num_classes, opened.class_names)


def _open_prepared(
    name: str, data_dir: str | os.PathLike[str] | None, train_split: str
) -> tuple[prepared.Prepared, list[str], str]:
    opened = prepared.open_set(name, find_set(name, default_dir(data_dir)))
    held_out = "test" if "test" in opened.splits else "validation"
    if {"test", "validation"} <= {*opened.splits} and not prepared.has_labels(opened, "test"):
        held_out = "validation"  # as of ImageNet, whose test labels nobody has
    parts = train_split.split("+")
    missing = [split for split in [*parts, held_out] if split not in opened.splits]
    if missing or len(set(parts)) < len(parts):
        wanted = " and ".join(repr(part) for part in parts)
        raise ValueError(
            f"{name!r} needs the splits {wanted} and 'test' (or 'validation'), got {sorted(opened.splits)}."
        )
    if held_out in parts:
        raise ValueError(
            f"`train_split` must leave {held_out!r} out, the test set of {name!r}, got {train_split!r}."
        )
    return opened, parts, held_out


def count_train(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    train_split: str = "train",
    sequence_length: int | None = None,
) -> int:
    """Count the training examples that ``load`` would return, without decoding an image of a folder or of TFDS.

    >>> count_train("digits")
    1437
    """
    if name == "digits" or is_text(name) or name.startswith(_FOLDER):
        size = 1 if name.startswith(_FOLDER) else None  # images are decoded when used: never
        loaded = load(name, train_split=train_split, image_size=size, sequence_length=sequence_length)
        return len(loaded.train)
    opened, parts, _ = _open_prepared(name, data_dir, train_split)
    return sum(number for part in parts for _, number in opened.splits[part])


def check_examples(dataset: Dataset) -> Dataset:
    """Refuse images with labels as ``check_images`` does; tokens are looked at where the network is known.

    >>> check_examples(load("digits")).num_classes
    10
    """
    train, test = as_source(dataset.train), as_source(dataset.test)
    if "tokens" in train.take(np.zeros(1, np.int64)):
        return dataset._replace(train=train, test=test)
    return check_images(dataset)


def check_images(dataset: Dataset) -> Dataset:
    """Refuse images and labels that no network of this package can be trained on.

    Args:
        dataset: A data set of the caller's own.

    Returns:
        The data set, with sources for what it held; labels that lie on disk are looked at as they are read.

    Raises:
        ValueError: Images are not (N, height, width, channels), training and test images differ in shape, or a
            label is no integer or out of range.

    Example:
        >>> image = np.zeros((2, 3, 8, 8), np.uint8)
        >>> split = {"image": image, "label": np.zeros(2, np.int32)}
        >>> check_images(Dataset("mine", split, split, 10))
        Traceback (most recent call last):
        ...
        ValueError: Images of mine must be (N, height, width, channels) with 1 to 4 channels last, got
        (2, 3, 8, 8), which looks like channels first: transpose them with axes (0, 2, 3, 1).
    """
    train = _check_split(dataset.train, dataset)
    test = _check_split(dataset.test, dataset)
    shapes = [source.take(np.zeros(1, np.int64))["image"].shape[1:] for source in (train, test)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Training and test images of {dataset.name} must have one shape, got {shapes[0]} and {shapes[1]}."
        )
    return dataset._replace(train=train, test=test)


def _check_split(data: Any, dataset: Dataset) -> Source:
    source, name = as_source(data), dataset.name
    example = source.take(np.zeros(1, np.int64))
    if not {"image", "label"} <= example.keys():
        raise ValueError(f"Examples of {name} need an 'image' and a 'label', got {sorted(example)}.")
    image, label = example["image"], example["label"]
    if image.ndim != 4 or not 1 <= image.shape[-1] <= 4:
        first = image.ndim == 4 and 1 <= image.shape[1] <= 4
        hint = ", which looks like channels first: transpose them with axes (0, 2, 3, 1)" if first else ""
        raise ValueError(
            f"Images of {name} must be (N, height, width, channels) with 1 to 4 channels last, "
            f"got {(len(source), *image.shape[1:])}{hint}."
        )
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise ValueError(
            f"Labels of {name} must be integers of shape (N,), got {label.dtype} of shape "
            f"{(len(source), *label.shape[1:])}."
        )
    check = functools.partial(_check_labels, name, dataset.num_classes)
    if isinstance(source, Arrays):
        check(np.arange(len(source)), source.arrays)
    elif getattr(source, "check", None) is None:
        source = View(source, np.arange(len(source)), check)
    return source


def _check_labels(name: str, num_classes: int, indices: np.ndarray, batch: dict[str, Any]) -> None:
    label = batch["label"]
    wrong = (label < 0) | (label >= num_classes)
    if wrong.any():
        raise ValueError(
            f"Labels of {name} must lie in 0..{num_classes - 1}, got {label.min()}..{label.max()}: example "
            f"{indices[wrong][0]} has {label[wrong][0]}."
        )
