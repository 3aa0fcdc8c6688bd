"""Tiny ImageNet as a TFDS data set, built from its public archive; TFDS itself has no builder for it.

100,000 training and 10,000 validation images of 64x64 in 200 classes. The labels of the test images in the
archive were never published, so these are left out and ``validation`` stands in for the test set.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # of the archive, 248,100,043 bytes; covers every file in it


class TinyImagenet(tfds.core.GeneratorBasedBuilder):
    """Builder of ``tiny_imagenet``: ``id``, ``image`` (JPEG, 64x64x3) and ``label`` (WordNet ids)."""

    name = "tiny_imagenet"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "From tiny-imagenet-200.zip."}
    archive: Path | None = None  # instead of a download
    md5 = MD5
    num_classes, per_class, num_validation = 200, 500, 10_000

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Tiny ImageNet: 200 classes of ImageNet at 64x64.",
            homepage=URL,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=self.num_classes),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> Any:
        archive = Path(self.archive or dl_manager.download(URL))
        check_md5(archive, self.md5)
        root = Path(dl_manager.extract(archive)) / "tiny-imagenet-200"
        names = class_names(root, self.num_classes)
        self.info.features["label"].names = names
        return {
            "train": self._generate_examples(train_images(root, names, self.per_class)),
            "validation": self._generate_examples(validation_images(root, names, self.num_validation)),
        }

    def _generate_examples(self, images: Iterator[tuple[Path, int]]) -> Any:
        for path, label in images:
            yield path.stem, {"id": path.stem, "image": str(path), "label": label}


def check_md5(archive: Path, expected: str) -> None:
    """Refuse an archive that has another MD5."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest()
    if digest != expected:
        raise ValueError(
            f"{archive} is not the archive of Tiny ImageNet: its MD5 is {digest}, not {expected}. "
            "Download it again."
        )


def class_names(root: Path, number: int) -> list[str]:
    """Read the WordNet ids of the classes, so many, in the archive's order, which numbers the labels."""
    names = (root / "wnids.txt").read_text().split()
    if len(set(names)) != number:
        raise ValueError(f"{root}/wnids.txt must name {number} classes, got {len(set(names))}.")
    return names


def train_images(root: Path, names: list[str], per_class: int) -> Iterator[tuple[Path, int]]:
    """Yield the training images, ``per_class`` of each class, with their labels."""
    for label, name in enumerate(names):
        paths = sorted((root / "train" / name / "images").glob("*.JPEG"))
        if len(paths) != per_class:
            raise ValueError(f"Class {name} in {root} must have {per_class} training images, got {len(paths)}.")
        yield from ((path, label) for path in paths)


def validation_images(root: Path, names: list[str], number: int) -> Iterator[tuple[Path, int]]:
    """Yield the validation images, so many, with their labels."""
    labels = {name: label for label, name in enumerate(names)}
    lines = (root / "val" / "val_annotations.txt").read_text().splitlines()
    if len(lines) != number:
        raise ValueError(f"{root}/val/val_annotations.txt must list {number} images, got {len(lines)}.")
    for line in lines:
        file, name = line.split("\t")[:2]
        yield root / "val" / "images" / file, labels[name]
