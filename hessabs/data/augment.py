"""Augmentation of images, deterministic given (seed, epoch, example): which worker does it, and in which batch
an example lies, does not matter.

``crop_flip`` works on uint8 or float batches on the device: the stream adds what was drawn for each example, as
``"shift"``, and the training step applies it. ``resized_crop`` (``hessabs.data.images``) is for encoded images
of any size, where they are decoded. Measurements (eigenvalues, accuracy) see images without augmentation.
"""

import jax
import jax.numpy as jnp
import numpy as np

AUGMENTATIONS = ("none", "crop_flip", "resized_crop")
_PADDING = 4


def example_bits(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Draw 64 random bits for each example of an epoch, uint64, the same in every version of NumPy."""
    # A third entry keeps the draws apart from those of the order, which are seeded with two.
    return np.random.Philox(np.random.SeedSequence([int(seed), int(epoch), 1])).random_raw(num_examples)


def shifts(bits: np.ndarray) -> np.ndarray:
    """Turn random bits into what ``crop_flip`` applies, int32 (n, 3): the first row and column of the crop in
    the padded image, each in 0..8, and 1 for a mirrored image.
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
