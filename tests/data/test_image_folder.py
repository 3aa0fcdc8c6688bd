"""Image folders: decoded exactly, split by name, and every fault counted before a run begins."""

import numpy as np
import pytest

from hessabs.data import DatasetNotFoundError, fingerprint, load, read_image, reader

Image = pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")

CLASSES = ("ant", "bee", "cat")


def pixels(label, number, shape=(6, 6, 3)):
    """An image that tells its class and number."""
    return np.full(shape, 60 * label + number, np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(path)


def write(root, numbers=(7, 5, 6), classes=CLASSES, suffix=".png", **options):
    for label, (name, number) in enumerate(zip(classes, numbers, strict=True)):
        for i in range(number):
            save(root / name / f"{i:03d}{suffix}", pixels(label, i, **options))
    return root


def read(folder, **options):
    return load(f"folder:{folder}", **options)


def everything(source):
    return source.take(np.arange(len(source)))


def test_every_fifth_image_of_a_class_is_for_the_test(tmp_path):
    (write(tmp_path) / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    got = read(tmp_path)
    assert (got.name, got.num_classes, got.class_names) == (f"folder:{tmp_path}", 3, CLASSES)
    held = [(0, 0), (0, 5), (1, 0), (2, 0), (2, 5)]
    rest = [(c, i) for c, n in enumerate((7, 5, 6)) for i in range(n) if (c, i) not in held]
    for source, expected in ((got.train, rest), (got.test, held)):
        batch = everything(source)
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], [pixels(*example) for example in expected])
        np.testing.assert_array_equal(batch["label"], [label for label, _ in expected])
    assert fingerprint(got.train) == fingerprint(read(tmp_path).train)
    few = everything(read(tmp_path, num_test=3).test)
    assert few["label"].tolist() == [0, 1, 2]  # from all over the set


@pytest.mark.parametrize("held_out", ["test", "val", "validation"])
@pytest.mark.parametrize(("shape", "suffix"), [((4, 5, 1), ".PNG"), ((8, 8, 3), ".jpeg")])
def test_a_folder_for_each_split(tmp_path, held_out, shape, suffix):
    write(tmp_path / "train", (3, 4, 2), shape=shape, suffix=suffix)
    write(tmp_path / held_out, (1, 1, 2), shape=shape, suffix=suffix)
    got = read(tmp_path)
    assert (len(got.train), len(got.test), got.class_names) == (9, 4, CLASSES)
    assert got.test["label"].tolist() == [0, 1, 2, 2]
    # A JPEG of one colour is off by a rounding of its colour space at most.
    expected = [pixels(c, i, shape) for c, i in ((0, 0), (1, 0), (2, 0), (2, 1))]
    np.testing.assert_allclose(got.test["image"].astype(int), expected, atol=0 if suffix == ".PNG" else 2)


def test_of_three_splits_val_is_not_read(tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        write(tmp_path / split, (2 + number,) * 3)
    (tmp_path / "val" / "ant" / "000.png").write_bytes(b"no image")
    got = read(tmp_path)
    assert (len(got.train), len(got.test)) == (6, 12)


def test_transparency_and_palettes_are_rgb(tmp_path):
    write(tmp_path)
    image = Image.fromarray(pixels(0, 1))
    image.convert("RGBA").save(tmp_path / "ant" / "001.png")
    image.convert("P").save(tmp_path / "ant" / "002.png")
    got = everything(read(tmp_path).train)["image"][:2]
    np.testing.assert_array_equal(got[0], pixels(0, 1))
    assert got[1].shape == (6, 6, 3)


def ramp(width, height):
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()


def test_sizes_that_differ_are_resized_when_loaded_or_used(tmp_path):
    write(tmp_path)
    save(tmp_path / "ant" / "001.png", ramp(64, 32))
    loaded, used = read(tmp_path, resize=32), read(tmp_path, image_size=28)
    assert loaded.train["image"].shape == (13, 32, 32, 3)
    wide = [everything(source)["image"][0] for source in (loaded.train, used.train)]
    np.testing.assert_array_equal(wide[0][0, :, 0], np.arange(16, 48))  # the middle of it, at its own scale
    np.testing.assert_array_equal(wide[1][0, :, 0], np.arange(18, 46))  # seven eighths of that
    np.testing.assert_array_equal(everything(used.train)["label"], loaded.train["label"])
    for options in ({"augmentation": "resized_crop"}, {"augmentation": "crop_flip"}):
        batch, _ = reader(used.train, 4, seed=0, **options)(3)
        assert batch["image"].shape == (12, 28, 28, 3)
    assert fingerprint(used.train) != fingerprint(used.test)


@pytest.mark.slow
def test_worker_processes_read_folders(tmp_path):
    train = read(write(tmp_path), image_size=8).train
    options = {"seed": 1, "augmentation": "resized_crop"}
    alone, helped = reader(train, 4, **options), reader(train, 4, num_workers=2, **options)
    for _ in range(4):
        np.testing.assert_array_equal(alone(1)[0]["image"], helped(1)[0]["image"])


def damage(root):
    (root / "bee" / "002.png").write_bytes(b"no image")
    truncated = root / "cat" / "003.png"
    truncated.write_bytes(truncated.read_bytes()[:50])
    Image.fromarray(np.zeros((6, 6), np.uint16)).save(root / "ant" / "004.png")
    (root / "ant" / "005.png").write_bytes(b"")


def test_unreadable_images_are_counted_and_named(tmp_path):
    damage(write(tmp_path))
    with pytest.raises(ValueError, match=r"4 of 18 images in .* cannot be read: .* and 1 more") as caught:
        read(tmp_path)
    for part in (
        "ant/004.png (its pixels are of more than 8 bits (mode I;16))",
        "bee/002.png (cannot identify",
    ):
        assert part in str(caught.value)
    lazy = read(tmp_path, image_size=6)
    with pytest.raises(ValueError, match=r"image .*bee/002\.png cannot be used: cannot identify"):
        lazy.train.take(np.array([6]))


def test_sizes_that_differ_are_counted(tmp_path):
    write(tmp_path)
    for i in (1, 2, 3, 4):
        save(tmp_path / "bee" / f"{i:03d}.png", pixels(1, i, (6, 9, 3)))
    expected = r"must have one size .* 4 of 18 in .* are not 6x6: bee/00\d.png 9x6, .* and 1 more.*`--resize N`"
    with pytest.raises(ValueError, match=expected):
        read(tmp_path)


def test_grey_and_colour(tmp_path):
    write(tmp_path)
    save(tmp_path / "bee" / "001.png", pixels(1, 1, (6, 6, 1)))
    for options in ({}, {"resize": 6}):
        said = (
            r"all be grey or all RGB: 1 of 18 in .* is not RGB: bee/001.png grey. .*with `--image_size N` grey"
        )
        with pytest.raises(ValueError, match=said):
            read(tmp_path, **options)
    assert everything(read(tmp_path, image_size=6).train)["image"].shape == (13, 6, 6, 3)
    save(tmp_path / "ant" / "001.png", pixels(0, 1, (6, 6, 1)))  # the first to train on
    with pytest.raises(ValueError, match=r"2 of 18 in .* are not RGB: .* Convert them to one kind\.$"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"ant/002.png cannot be used: it has colours, .* first .* is grey"):
        read(tmp_path, image_size=6).train.take(np.array([1]))


def only_train(root):
    write(root / "train")


def other_classes(root):
    write(root / "train")
    write(root / "test", classes=("ant", "bee", "dog"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, r"at least two classes, got none\."),
        (lambda root: (root / "ant").mkdir(), r"at least two classes, got one, 'ant'\."),
        (
            lambda root: (write(root), (root / "dog").mkdir()),
            r"Classes in .* without a PNG or JPEG image: dog\.",
        ),
        (lambda root: write(root, (3, 1, 3)), r"Class 'bee' in .* has one image, which cannot be split"),
        (
            lambda root: (write(root), (root / "ant" / "far").mkdir()),
            r"holds its images and no folders, got in .*: ant/far\. Move",
        ),
        (
            lambda root: (write(root), (root / "bee" / "b.BMP").write_bytes(b"")),
            r"Images must be PNG or JPEG: 1 in .* are not: bee/b\.BMP\. Convert",
        ),
        (only_train, r"has train/ and none of test/, val/, validation/: add one, or use folder:.*train"),
        (other_classes, r"train/ and test/ .* only train/ has \['cat'\], only test/ has \['dog'\]"),
    ],
)
def test_folders_that_are_no_set(tmp_path, make, said):
    root = tmp_path / "images"
    root.mkdir()
    make(root)
    for options in ({}, {"image_size": 4}):
        with pytest.raises(ValueError, match=said):
            read(root, **options)


def test_no_such_folder_and_options_that_do_not_fit(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"There is no folder .*nowhere: `folder:PATH` names"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no splits by name: leave train_split, got 'extra'"):
        read(write(tmp_path), train_split="extra")
    with pytest.raises(ValueError, match=r"`resize` must be at least 1, got 0"):
        read(tmp_path, resize=0)
    with pytest.raises(ValueError, match=r"name one of them"):
        read(tmp_path, resize=4, image_size=4)


def test_images_for_a_prediction(tmp_path):
    colour, wide = tmp_path / "colour.png", tmp_path / "wide.png"
    save(colour, pixels(1, 2))
    save(wide, ramp(64, 32))
    np.testing.assert_array_equal(read_image(colour, (6, 6, 3)), pixels(1, 2))
    np.testing.assert_array_equal(read_image(colour, (6, 6, 1)), pixels(1, 2, (6, 6, 1)))  # grey is grey
    np.testing.assert_array_equal(read_image(wide, (32, 32, 3), resize=32)[0, :, 0], np.arange(16, 48))
    np.testing.assert_array_equal(read_image(wide, (28, 28, 3), image_size=28)[0, :, 0], np.arange(18, 46))
    with pytest.raises(ValueError, match=r"is 32x64 and those of the data set are 6x6: .* `--resize 6`"):
        read_image(wide, (6, 6, 3))
    with pytest.raises(ValueError, match=r"5x4 cannot be made by resizing to 4x4"):
        read_image(wide, (5, 4, 3), resize=4)
    with pytest.raises(ValueError, match=r"test_image_folder\.py cannot be read: cannot identify"):
        read_image(__file__, (6, 6, 3))
