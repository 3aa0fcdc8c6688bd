"""Image folders: a sub-folder of PNG or JPEG images for each class, split into two or not.

Beside ``train/`` the test set is ``test/``, or ``val/`` or ``validation/`` where there is no ``test/``; no
other folder is read. Without ``train/`` it is every fifth image of a class.
"""

import collections
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from hessabs.data.catalog import DatasetNotFoundError, folders
from hessabs.data.images import decode, num_channels, open_image
from hessabs.data.source import Arrays, Examples, Source

_SUFFIXES = (".png", ".jpg", ".jpeg")
_OTHERS = (".bmp", ".gif", ".heic", ".heif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")  # images all the same
_TESTS = ("test", "val", "validation")
_EVERY = 5  # every fifth image of a class is held out for the test
_THREADS = 4
_AT_ONCE = 1024  # images that wait to be copied
_NAMED = 3  # of many images of one fault, so many are named


class Listing(NamedTuple):
    """The images of a set, class by class, sorted by name."""

    paths: list[Path]
    labels: np.ndarray  # int32
    class_names: tuple[str, ...]


@dataclasses.dataclass
class Files:
    """Images that are decoded and brought to ``size`` when they are asked for."""

    paths: list[Path]
    labels: np.ndarray
    size: int
    channels: int
    crops: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.paths)

    def content(self) -> bytes:
        """Say which examples these are, without reading them."""
        return "\n".join([str(self.size), *(f"{path.parent.name}/{path.name}" for path in self.paths)]).encode()

    def __getitem__(self, index: int, bits: int | None = None) -> dict[str, Any]:
        try:
            if self.channels == 1:
                with open_image(self.paths[index]) as image:
                    if num_channels(image) != 1:
                        raise ValueError("it has colours, and the first image of the folder is grey")
            image = decode(self.paths[index], self.channels, size=self.size, bits=bits)
        except ValueError as e:
            raise ValueError(f"The image {self.paths[index]} cannot be used: {e}.") from e
        return {"image": image, "label": self.labels[index]}


def load_folder(
    path: str, image_size: int | None, resize: int | None
) -> tuple[Source, Source, tuple[str, ...]]:
    """Read an image folder: (training examples, test examples, names of the classes, sorted).

    Images that are not decoded when used (``image_size``) are all read here, so that what cannot be used is
    counted before a run begins.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        seen_from = "" if root.is_absolute() else f" (seen from {Path.cwd()})"
        raise DatasetNotFoundError(
            f"There is no folder {root}{seen_from}: `folder:PATH` names a folder of class folders."
        )
    train, test = _split(root)
    if image_size is not None:
        with open_image(train.paths[0]) as image:
            channels = num_channels(image)
        lazy = [Examples(Files(part.paths, part.labels, image_size, channels)) for part in (train, test)]
        return lazy[0], lazy[1], train.class_names
    images = _read([*train.paths, *test.paths], root, resize)
    number = len(train.paths)
    return (
        Arrays({"image": images[:number], "label": train.labels}),
        Arrays({"image": images[number:], "label": test.labels}),
        train.class_names,
    )


def _split(root: Path) -> tuple[Listing, Listing]:
    if (root / "train").is_dir():
        tests = [root / name for name in _TESTS if (root / name).is_dir()]
        if not tests:
            raise ValueError(
                f"{root} has train/ and none of {', '.join(f'{name}/' for name in _TESTS)}: add one, or use "
                f"folder:{root / 'train'}, of which every fifth image is held out."
            )
        train, test = _list(root / "train"), _list(tests[0])
        if train.class_names != test.class_names:
            ours, theirs = set(train.class_names), set(test.class_names)
            raise ValueError(
                f"train/ and {tests[0].name}/ of {root} must have the same classes: only train/ has "
                f"{sorted(ours - theirs)}, only {tests[0].name}/ has {sorted(theirs - ours)}."
            )
        return train, test
    whole = _list(root)
    is_test = np.zeros(len(whole.paths), bool)
    for label, name in enumerate(whole.class_names):
        places = np.flatnonzero(whole.labels == label)
        if len(places) < 2:
            raise ValueError(f"Class {name!r} in {root} has one image, which cannot be split: add some.")
        is_test[places[::_EVERY]] = True

    def part(mask: np.ndarray) -> Listing:
        places = np.flatnonzero(mask)
        return whole._replace(paths=[whole.paths[i] for i in places], labels=whole.labels[places])

    return part(~is_test), part(is_test)


def _list(root: Path) -> Listing:
    classes = [folder for folder in folders(root) if not folder.name.startswith(".")]
    if len(classes) < 2:
        found = f"one, {classes[0].name!r}" if classes else "none"
        raise ValueError(f"{root} must hold a folder of images for each of at least two classes, got {found}.")
    inside = [[p for p in sorted(folder.iterdir()) if not p.name.startswith(".")] for folder in classes]
    nested = [f"{p.parent.name}/{p.name}" for each in inside for p in each if p.is_dir()]
    if nested:
        raise ValueError(
            f"The folder of a class holds its images and no folders, got in {root}: {_few(nested)}. Move their "
            "images into the folder of the class."
        )
    others = [f"{p.parent.name}/{p.name}" for each in inside for p in each if p.suffix.lower() in _OTHERS]
    if others:
        raise ValueError(
            f"Images must be PNG or JPEG: {len(others)} in {root} are not: {_few(others)}. Convert them, or "
            "remove them."
        )
    paths = [[p for p in each if p.suffix.lower() in _SUFFIXES] for each in inside]
    empty = [folder.name for folder, found in zip(classes, paths, strict=True) if not found]
    if empty:
        raise ValueError(f"Classes in {root} without a PNG or JPEG image: {_few(empty)}.")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(found) for found in paths])
    return Listing([path for found in paths for path in found], labels, tuple(f.name for f in classes))


def _read(paths: list[Path], root: Path, resize: int | None) -> np.ndarray:
    images, shapes, unreadable = np.empty((0,), np.uint8), list[tuple[int, ...]](), list[str]()

    def read(path: Path) -> np.ndarray | str:
        try:
            return decode(path, None, size=resize, share=1)
        except ValueError as e:
            return f"{path.relative_to(root)} ({e})"

    with ThreadPoolExecutor(_THREADS) as pool:  # Pillow decodes outside of Python's lock
        for start in range(0, len(paths), _AT_ONCE):
            for i, image in enumerate(pool.map(read, paths[start : start + _AT_ONCE]), start):
                if isinstance(image, str):
                    unreadable.append(image)
                    continue
                if not shapes:
                    images = np.empty((len(paths), *image.shape), np.uint8)
                if image.shape == images.shape[1:]:
                    images[i] = image
                shapes.append(image.shape)
    if unreadable:
        raise ValueError(
            f"{len(unreadable)} of {len(paths)} images in {root} cannot be read: {_few(unreadable)}."
        )
    kinds = ["grey" if shape[2] == 1 else "RGB" for shape in shapes]
    advice = "Convert them to one kind."
    if kinds[0] == "RGB":  # as of ``Files``
        advice = "Convert them to one kind; with `--image_size N` grey ones become RGB as they are used."
    _refuse_others(paths, root, kinds, "all be grey or all RGB", advice)
    advice = (
        "`--resize N` resizes and crops all to NxN as they are loaded, `--image_size N` when they are used."
    )
    sizes = [f"{shape[1]}x{shape[0]}" for shape in shapes]
    _refuse_others(paths, root, sizes, "have one size (width x height)", advice)
    return images


def _refuse_others(paths: list[Path], root: Path, found: list[str], must: str, advice: str) -> None:
    usual = collections.Counter(found).most_common(1)[0][0]
    wrong = [f"{p.relative_to(root)} {v}" for p, v in zip(paths, found, strict=True) if v != usual]
    if wrong:
        raise ValueError(
            f"The images must {must}: {len(wrong)} of {len(paths)} in {root} {_be(wrong)} not {usual}: "
            f"{_few(wrong)}. {advice}"
        )


def _be(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
