"""Images decoded by Pillow, as they are or brought to a size; random crops, deterministic by 64 random bits."""

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's name for each number of channels
_GREY = ("1", "L", "LA")
_EVALUATED = 7 / 8  # of the short side is what an image of a set that is decoded when used shows: 224 of 256
_TRIES = 10
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def read_image(
    path: str | os.PathLike[str],
    shape: tuple[int, int, int],
    *,
    image_size: int | None = None,
    resize: int | None = None,
) -> np.ndarray:
    """Read an image for a network as ``load`` reads those of its data set.

    Args:
        path: The file.
        shape: (height, width, channels) of the images of the set; colours are converted.
        image_size: That with which the set was loaded.
        resize: That with which it was loaded, or the side of its images to have this one resized.

    Returns:
        uint8, of ``shape``.

    Raises:
        ImportError: Pillow is missing.
        ValueError: The file cannot be read, or the image has another size and is not to be resized.
    """
    size = image_size or resize
    if size is not None and shape[:2] != (size, size):
        raise ValueError(f"Images of {shape[0]}x{shape[1]} cannot be made by resizing to {size}x{size}.")
    try:
        pixels = decode(Path(path), shape[2], size=size, share=_EVALUATED if image_size else 1)
    except ValueError as e:
        raise ValueError(f"The image {path} cannot be read: {e}") from e
    if pixels.shape != shape:
        theirs, ours = (f"{sides[0]}x{sides[1]}" for sides in (pixels.shape, shape))
        advice = f", or have it resized with `--resize {shape[0]}`." if shape[0] == shape[1] else "."
        raise ValueError(
            f"The image {path} is {theirs} and those of the data set are {ours}: bring it to that size{advice}"
        )
    return pixels


def decode(
    data: bytes | Path,
    channels: int | None,
    *,
    size: int | None = None,
    share: float = _EVALUATED,
    bits: int | None = None,
) -> np.ndarray:
    """Decode an image to uint8 (H, W, C), or raise ``ValueError``; ``channels=None`` makes it grey or RGB, as
    it is. With ``size`` it is a random crop of it, if there are ``bits`` for that, else its middle.
    """
    with open_image(data) as image:
        if size is not None and bits is None:
            # JPEG can be decoded at 1/2, 1/4, 1/8 of its size: ask for no more than is needed.
            image.draft(None, (2 * size, 2 * size))
        mode = _MODES[channels or num_channels(image)]
        image = image if image.mode == mode else image.convert(mode)
        if size is not None:
            image = middle(image, size, share) if bits is None else resized_crop(image, size, bits)
        pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@contextlib.contextmanager
def open_image(data: bytes | Path) -> Iterator[Any]:
    """Open an encoded image; whatever Pillow says of a damaged one becomes a ``ValueError``."""
    try:
        from PIL import Image
    except ImportError as e:
        raise ImportError(f"Images are read with Pillow ({e}): install the extra `hessabs[data]`.") from e
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            if image.mode[0] in "IF":
                raise ValueError(f"its pixels are of more than 8 bits (mode {image.mode})")
            yield image
    except (OSError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as e:
        raise ValueError(" ".join(str(e).split())) from e


def num_channels(image: Any) -> int:
    """Count the channels of a ``PIL.Image`` without transparency: 1 or 3."""
    return 1 if image.mode in _GREY else 3


def resized_crop(image: Any, size: int, bits: int) -> Any:
    """Crop 8 to 100 % of a ``PIL.Image`` at an aspect ratio of 3/4 to 4/3, resize it, and mirror it or not.

    The training augmentation of ImageNet (Szegedy et al. 2014, arXiv:1409.4842): ten tries, then the largest
    crop in the middle.
    """
    from PIL import Image

    raw = np.random.Philox(np.random.SeedSequence(int(bits))).random_raw(4 * _TRIES + 1)
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    width, height = image.size
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    for u in uniform[:-1].reshape(_TRIES, 4):
        area = width * height * (_AREA[0] + u[0] * (_AREA[1] - _AREA[0]))
        ratio = np.exp(np.log(_RATIO[0]) + u[1] * np.log(_RATIO[1] / _RATIO[0]))
        tried = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < tried[0] <= width and 0 < tried[1] <= height:
            w, h = tried
            left, top = int(u[2] * (width - w + 1)), int(u[3] * (height - h + 1))
            break
    cropped = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if uniform[-1] < 0.5 else cropped


def middle(image: Any, size: int, share: float = _EVALUATED) -> Any:
    """Crop the middle square of a ``PIL.Image``, a share of its short side, and resize it to ``size``."""
    from PIL import Image

    width, height = image.size
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
