"""Augmentation: by hand in numpy, and the same for an example whatever else changes."""

import jax
import numpy as np
import pytest

from hessabs.data import crop_flip, epoch_order, reader
from hessabs.data.augment import example_bits, shifts
from hessabs.data.images import middle, resized_crop

Image = pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")


def by_hand(image, shift):
    row, column, mirrored = shift
    padded = np.zeros((image.shape[0] + 8, image.shape[1] + 8, image.shape[2]), image.dtype)
    padded[4:-4, 4:-4] = image
    crop = padded[row : row + image.shape[0], column : column + image.shape[1]]
    return crop[:, ::-1] if mirrored else crop


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_flip_by_hand(dtype):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 6, 7, 3)).astype(dtype)
    shift = shifts(example_bits(0, 0, 40))
    got = jax.jit(crop_flip)(images, shift)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, [by_hand(*row) for row in zip(images, shift, strict=True)])


def test_shifts_are_uniform():
    drawn = shifts(example_bits(3, 5, 9000))
    for column, sides in zip(drawn.T, (9, 9, 2), strict=True):
        counts = np.bincount(column, minlength=sides)
        assert len(counts) == sides
        assert np.abs(counts - 9000 / sides).max() < 5 * (9000 / sides) ** 0.5


def test_bits_depend_on_seed_and_epoch():
    assert len({example_bits(seed, epoch, 1)[0] for seed in range(3) for epoch in range(3)}) == 9


@pytest.mark.parametrize("size", [2, 3, 6])
def test_an_example_is_augmented_alike_in_every_batch(size):
    arrays = {
        "image": np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1),
        "label": np.arange(12, dtype=np.int32),
    }
    read = reader(arrays, size, seed=1, augmentation="crop_flip")
    for epoch in range(2):
        drawn = shifts(example_bits(1, epoch, 12))
        order = epoch_order(1, epoch, 12)
        for start in range(0, 12, size):
            batch, _ = read(1)
            np.testing.assert_array_equal(batch["label"], order[start : start + size])
            np.testing.assert_array_equal(batch["shift"], drawn[batch["label"]])


@pytest.mark.parametrize("arrays", [{"label": np.arange(4)}, {"image": np.zeros((4, 9))}])
def test_other_examples_than_images_are_refused(arrays):
    with pytest.raises(ValueError, match=r"`crop_flip` needs images, 'image' of shape \(N, H, W, C\), got"):
        reader(arrays, 2, seed=0, augmentation="crop_flip")
    with pytest.raises(ValueError, match=r"must be one of none, crop_flip, resized_crop, got 'flip'"):
        reader(arrays, 2, seed=0, augmentation="flip")


def coordinates(width, height):
    """An image whose red is the column and whose green is the row."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width), np.arange(height)[:, None]
    return Image.fromarray(pixels)


def test_resized_crop_keeps_to_its_area_and_ratio():
    width, height = 240, 160
    seen = []
    for bits in example_bits(0, 0, 200):
        pixels = np.asarray(resized_crop(coordinates(width, height), 64, int(bits)), float)
        assert pixels.shape == (64, 64, 3)
        across, down = pixels[:, :, 0].mean(0), pixels[:, :, 1].mean(1)
        # The first and last of 64 cells are 63/64 of the crop apart.
        w, h = (abs(line[-1] - line[0]) * 64 / 63 for line in (across, down))
        seen.append((w * h / (width * height), w / h, across[0] > across[-1]))
    area, ratio, mirrored = np.array(seen).T
    slack = 0.1  # whole pixels, of the crop and of the values
    assert area.min() > 0.08 * (1 - slack)
    assert area.max() < 1 + slack
    assert ratio.min() > 0.75 * (1 - slack)
    assert ratio.max() < 4 / 3 * (1 + slack)
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 200**0.5


def test_resized_crop_of_an_image_too_narrow_for_any_try():
    pixels = np.asarray(resized_crop(coordinates(4, 200), 8, 0), float)
    # The largest crop in the middle: as wide as the image, 4/3 as high.
    assert abs(pixels[:, :, 1].mean() - 99.5) < 2


def test_centre_crop_takes_seven_eighths_of_the_short_side():
    pixels = np.asarray(middle(coordinates(224, 160), 64), float)
    across, down = pixels[:, :, 0].mean(0), pixels[:, :, 1].mean(1)
    for line, centre in ((across, 111.5), (down, 79.5)):
        assert abs(line.mean() - centre) < 1
        assert abs((line[-1] - line[0]) * 64 / 63 - 140) < 2
