"""Augmentation of images, deterministic given (seed, epoch, example): which worker does it, and in which batch
an example lies, does not matter.

``crop_flip`` works on uint8 or float batches on the device: the stream adds what was drawn for each example, as
``"shift"``, and the training step applies it. ``resized_crop`` is for encoded images of any size, in the
workers. Measurements (eigenvalues, accuracy) see images without augmentation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AUGMENTATIONS = ("none", "crop_flip", "resized_crop")
_PADDING = 4
_TRIES = 10
_AREA, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def example_bits(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Draw 64 random bits for each example of an epoch.

    They are the raw output of Philox, which NumPy guarantees to stay the same in later versions.

    Args:
        seed: The seed of the run, at least 0.
        epoch: The epoch, at least 0.
        num_examples: The number of examples.

    Returns:
        uint64 (num_examples,).

    Example:
        >>> bits = example_bits(0, 0, 3)
        >>> bits.dtype, bool((bits == example_bits(0, 0, 4)[:3]).all())
        (dtype('uint64'), True)
    """
    # A third entry keeps the draws apart from those of the order, which are seeded with two.
    return np.random.Philox(np.random.SeedSequence([int(seed), int(epoch), 1])).random_raw(num_examples)


def shifts(bits: np.ndarray) -> np.ndarray:
    """Turn random bits into what ``crop_flip`` applies.

    Args:
        bits: uint64 (n,).

    Returns:
        int32 (n, 3): the first row and column of the crop in the padded image, each in 0..8, and
        1 for a mirrored image.

    Example:
        >>> shifts(example_bits(0, 0, 2)).shape
        (2, 3)
    """
    sides = np.uint64(2 * _PADDING + 1)
    rows = (bits & np.uint64(0xFFFFFFFF)) % sides
    columns = (bits >> np.uint64(32)) % sides
    return np.stack([rows, columns, bits >> np.uint64(63)], axis=1).astype(np.int32)


def crop_flip(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Pad by 4 zeros, crop to the old size, and mirror left to right.

    Args:
        images: Shape (n, H, W, C), uint8 or floating point.
        shift: int32 (n, 3), from ``shifts``.

    Returns:
        The shape and dtype of ``images``.

    Example:
        >>> image = jnp.arange(9.0).reshape(1, 3, 3, 1)
        >>> crop_flip(image, jnp.array([[4, 3, 1]]))[0, :, :, 0].tolist()
        [[1.0, 0.0, 0.0], [4.0, 3.0, 0.0], [7.0, 6.0, 0.0]]
    """
    side = (_PADDING, _PADDING)
    padded = jnp.pad(images, ((0, 0), side, side, (0, 0)))

    def one(image: jax.Array, shift: jax.Array) -> jax.Array:
        cropped = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:])
        return jnp.where(shift[2] == 1, cropped[:, ::-1], cropped)

    return jax.vmap(one)(padded, shift)


def resized_crop(image: Any, size: int, bits: int) -> Any:
    """Crop 8 to 100 % of an image at an aspect ratio of 3/4 to 4/3, resize it, and mirror it or not.

    The training augmentation of ImageNet (Szegedy et al. 2014, arXiv:1409.4842): ten tries, then the
    largest crop in the middle.

    Args:
        image: A ``PIL.Image``.
        size: The side of the result.
        bits: 64 random bits, from ``example_bits``.

    Returns:
        A ``PIL.Image`` of ``size`` x ``size``.
    """
    from PIL import Image

    raw = np.random.Philox(np.random.SeedSequence(int(bits))).random_raw(4 * _TRIES + 1)
    uniform = (raw >> np.uint64(11)) * 2.0**-53
    width, height = image.size
    box = _middle(width, height)
    for i in range(_TRIES):
        u = uniform[4 * i : 4 * i + 4]
        area = width * height * (_AREA[0] + u[0] * (_AREA[1] - _AREA[0]))
        ratio = np.exp(np.log(_RATIO[0]) + u[1] * np.log(_RATIO[1] / _RATIO[0]))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(u[2] * (width - w + 1)), int(u[3] * (height - h + 1))
            box = (left, top, left + w, top + h)
            break
    cropped = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if uniform[-1] < 0.5 else cropped


def centre_crop(image: Any, size: int) -> Any:
    """Resize the short side to 8/7 of ``size`` and crop the middle: 256 and 224 for ImageNet.

    Args:
        image: A ``PIL.Image``.
        size: The side of the result.

    Returns:
        A ``PIL.Image`` of ``size`` x ``size``.
    """
    from PIL import Image

    width, height = image.size
    side = min(width, height) * 7 / 8
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    w, h = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
