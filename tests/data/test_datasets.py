"""Decoding is exact, the splits are what they say, and every failure says what to do."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hessabs.data import Dataset, DatasetNotFoundError, check_images, eval_batches, hold_out, load

NEEDS_TFDS = ["tensorflow_datasets", "array_record", "importlib_resources", "PIL"]


@pytest.fixture
def write():
    for package in NEEDS_TFDS:
        pytest.importorskip(package)
    from tests.tfds_writer import write_dataset

    return write_dataset


def random_split(num_examples, shape=(32, 32, 3), num_classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (num_examples, *shape), np.uint8),
        "label": rng.integers(0, num_classes, num_examples).astype(np.int32),
    }


def cifar10(train=23, test=11, **kwargs):
    return {
        "train": random_split(train, seed=1, **kwargs),
        "test": random_split(test, seed=2, **kwargs),
    }


def assert_same(got, expected):
    assert set(got.arrays) == {"image", "label"}
    assert got["image"].dtype == np.uint8
    assert got["label"].dtype == np.int32
    np.testing.assert_array_equal(got["image"], expected["image"])
    np.testing.assert_array_equal(got["label"], expected["label"])


@pytest.fixture
def digits():
    pytest.importorskip("sklearn")
    return load("digits")


def test_digits_is_an_exact_stratified_partition(digits):
    from sklearn.datasets import load_digits

    raw = load_digits()
    assert digits.name == "digits"
    assert (digits.num_classes, digits.class_names) == (10, tuple("0123456789"))
    assert digits.train["image"].shape == (1437, 8, 8, 1)
    assert digits.test["image"].shape == (360, 8, 8, 1)
    for part in (digits.train, digits.test):
        assert part["image"].dtype == np.uint8
        assert part["label"].dtype == np.int32
    both = np.concatenate([digits.train["image"], digits.test["image"]])[..., 0]
    scaled = np.round(raw.images * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, scaled))
    assert both.max() == 255
    share = np.bincount(digits.test["label"]) / np.bincount(raw.target)
    np.testing.assert_allclose(share, 0.2, atol=1 / 170)


def test_digits_is_the_same_every_time(digits):
    assert_same(load("digits").train, digits.train)
    assert_same(load("digits").test, digits.test)


def test_num_test_keeps_the_first(digits):
    few = load("digits", num_test=50)
    assert_same(few.train, digits.train)
    assert_same(few.test, {k: v[:50] for k, v in digits.test.arrays.items()})


@pytest.mark.parametrize("num_test", [0, -1, 361])
def test_num_test_out_of_range(num_test):
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match=rf"`num_test` must lie in \[1, 360\].* got {num_test}\."):
        load("digits", num_test=num_test)


@pytest.mark.parametrize("shards", [1, 3])
def test_cifar10_is_decoded_exactly(write, tmp_path, shards):
    splits = cifar10()
    write(tmp_path, "cifar10", splits, shards=shards)
    got = load("cifar10", data_dir=tmp_path)
    assert (got.name, got.num_classes, got.class_names) == ("cifar10", 10, tuple("0123456789"))
    assert_same(got.train, splits["train"])
    assert_same(got.test, splits["test"])


def test_more_examples_than_one_read_takes(write, tmp_path, monkeypatch):
    monkeypatch.setattr("hessabs.data.prepared._READ_SIZE", 4)
    splits = cifar10()
    write(tmp_path, "cifar10", splits, shards=2)
    assert_same(load("cifar10", data_dir=tmp_path).train, splits["train"])


def test_tfds_itself_reads_what_the_writer_wrote(write, tmp_path):
    import tensorflow_datasets as tfds

    splits = cifar10()
    builder = tfds.builder_from_directory(write(tmp_path, "cifar10", splits, shards=2))
    for split, expected in splits.items():
        source = builder.as_data_source(split)
        assert len(source) == len(expected["label"])
        for i, record in enumerate(source):
            np.testing.assert_array_equal(record["image"], expected["image"][i])
            assert record["label"] == expected["label"][i]
            assert record["id"] == f"{split}_{i:05d}".encode()


def test_grey_images_get_a_channel_axis(write, tmp_path):
    splits = cifar10(shape=(28, 28, 1))
    write(tmp_path, "mnist", splits)
    assert_same(load("mnist", data_dir=tmp_path).test, splits["test"])


def test_grey_file_in_a_colour_set_gets_three_channels(write, tmp_path):
    splits = cifar10(shape=(8, 8, 1))
    write(tmp_path, "mixed", splits, image_shape=(8, 8, 3))
    got = load("mixed", data_dir=tmp_path)
    np.testing.assert_array_equal(got.test["image"], np.repeat(splits["test"]["image"], 3, axis=-1))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_shape_that_the_metadata_leaves_open(write, tmp_path, channels):
    splits = cifar10(shape=(8, 6, channels))
    write(tmp_path, "open", splits, image_shape=(None, None, channels))
    assert_same(load("open", data_dir=tmp_path).train, splits["train"])


def test_validation_stands_in_for_test(write, tmp_path):
    splits = cifar10()
    write(tmp_path, "cifar10", {"train": splits["train"], "validation": splits["test"]})
    assert_same(load("cifar10", data_dir=tmp_path).test, splits["test"])


def test_newest_version_unless_named(write, tmp_path):
    for version, n in (("3.0.2", 5), ("3.0.10", 6), ("2.9.9", 7)):
        write(tmp_path, "cifar10", cifar10(train=n), version=version)
    (tmp_path / "cifar10" / "incomplete.X_4.0.0").mkdir()
    assert len(load("cifar10", data_dir=tmp_path).train) == 6
    assert len(load("cifar10:2.9.9", data_dir=tmp_path).train["label"]) == 7
    with pytest.raises(DatasetNotFoundError, match=r"No data set 'cifar10:1\.0\.0'"):
        load("cifar10:1.0.0", data_dir=tmp_path)


def test_configs(write, tmp_path):
    write(tmp_path, "noisy", cifar10(train=5), config="gauss")
    assert len(load("noisy", data_dir=tmp_path).train["label"]) == 5
    write(tmp_path, "noisy", cifar10(train=6), config="shot")
    assert len(load("noisy/shot", data_dir=tmp_path).train["label"]) == 6
    with pytest.raises(DatasetNotFoundError, match=r"several configs .*'noisy/gauss', 'noisy/sho"):
        load("noisy", data_dir=tmp_path)


def test_default_folder_follows_the_environment(write, tmp_path, monkeypatch):
    write(tmp_path / "a", "cifar10", cifar10(train=5))
    write(tmp_path / "home" / "tensorflow_datasets", "cifar10", cifar10(train=6))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "a"))
    assert len(load("cifar10").train["label"]) == 5
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert len(load("cifar10").train["label"]) == 6
    assert len(load("cifar10", data_dir="~/tensorflow_datasets").train["label"]) == 6


def test_unknown_name_lists_what_is_there(write, tmp_path):
    write(tmp_path, "cifar10", cifar10())
    write(tmp_path, "noisy", cifar10(), config="gauss")
    (tmp_path / "downloads").mkdir()
    with pytest.raises(
        DatasetNotFoundError, match=r"prepared there: cifar10/3.0.2, noisy/gauss/3.0.2\)"
    ) as caught:
        load("cifar100", data_dir=tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("'cifar100'", str(tmp_path), "--dataset digits", "--data_dir", "hessabs[prepare]"):
        assert part in message


@pytest.mark.parametrize("name", ["", "../cifar10", "cifar 10", "/", "cifar10:"])
def test_odd_names_are_not_found(tmp_path, name):
    with pytest.raises(DatasetNotFoundError, match=r"prepared there: none"):
        load(name, data_dir=tmp_path)


def test_data_dir_does_not_exist(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"there is no such folder"):
        load("cifar10", data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_other_file_format(write, tmp_path, file_format):
    write(tmp_path, "cifar10", cifar10(), file_format=file_format)
    with pytest.raises(ValueError, match=f"prepared as {file_format}.*--file_format=array_record"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("package", ["tensorflow_datasets", "array_record", "importlib_resources"])
def test_missing_package_names_the_extra(write, tmp_path, monkeypatch, package):
    write(tmp_path, "cifar10", cifar10())
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*hessabs\[data\]"):
        load("cifar10", data_dir=tmp_path)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"hessabs\[train\]"):
        load("digits")


def test_differing_shapes_name_the_first(write, tmp_path):
    splits = cifar10(test=4)
    images = list(random_split(5)["image"])
    images[3] = images[3][:, :30]
    splits["train"] = {"image": images, "label": [0] * 5}
    write(tmp_path, "flowers", splits, image_shape=(None, None, 3))
    expected = r"image 0 of flowers/train is \(32, 32, 3\), image 3 is \(32, 30, 3\)"
    with pytest.raises(ValueError, match=expected):
        load("flowers", data_dir=tmp_path)


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(write, tmp_path, label):
    splits = cifar10()
    splits["test"]["label"][7] = label
    write(tmp_path, "cifar10", splits)
    with pytest.raises(ValueError, match=rf"in 0\.\.9: example 7 of cifar10/test has {label}\."):
        load("cifar10", data_dir=tmp_path)


def test_label_missing_from_the_records(write, tmp_path):
    splits = cifar10()
    del splits["test"]["label"]
    write(tmp_path, "cifar10", splits)
    with pytest.raises(ValueError, match=r"example 0 of cifar10/test has no label"):
        load("cifar10", data_dir=tmp_path)


def test_no_label_feature(write, tmp_path):
    import tensorflow_datasets as tfds

    splits = {k: {"image": v["image"]} for k, v in cifar10().items()}
    features = {"image": tfds.features.Image(shape=(32, 32, 3))}
    write(tmp_path, "pictures", splits, features=features)
    with pytest.raises(ValueError, match=r"no image classification set.*got image"):
        load("pictures", data_dir=tmp_path)


def test_missing_split(write, tmp_path):
    write(tmp_path, "cifar10", {"train": random_split(4)})
    with pytest.raises(ValueError, match=r"needs the splits 'train' and 'test'.*got \['train'\]"):
        load("cifar10", data_dir=tmp_path)


def shard(folder, i=1):
    return folder / f"cifar10-train.array_record-{i:05d}-of-00003"


def test_missing_shard_is_named(write, tmp_path):
    folder = write(tmp_path, "cifar10", cifar10(), shards=3)
    shard(folder).unlink()
    with pytest.raises(ValueError, match=r"is missing: .*train.array_record-00001-of-00003"):
        load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.99])
def test_truncated_shard_is_named(write, tmp_path, fraction):
    folder = write(tmp_path, "cifar10", cifar10(train=90), shards=3)
    os.truncate(shard(folder), int(fraction * shard(folder).stat().st_size))
    with pytest.raises(ValueError, match=r"is damaged: .*train.array_record-00001-of-00003"):
        load("cifar10", data_dir=tmp_path)


def test_shard_with_fewer_examples_than_stated_is_named(write, tmp_path):
    folder = write(tmp_path, "cifar10", cifar10(train=30), shards=3)
    short = write(tmp_path / "short", "cifar10", cifar10(train=27), shards=3)
    shard(folder).write_bytes(shard(short).read_bytes())
    with pytest.raises(ValueError, match=r"train.array_record-00001-of-00003 \(10 examples"):
        load("cifar10", data_dir=tmp_path)


def test_image_that_cannot_be_decoded(write, tmp_path):
    splits = cifar10()
    images = list(splits["test"]["image"])
    images[2] = b"no image"
    splits["test"]["image"] = images
    write(tmp_path, "cifar10", splits)
    with pytest.raises(ValueError, match=r"Image 2 of cifar10/test cannot be decoded"):
        load("cifar10", data_dir=tmp_path)


def test_what_importing_and_reading_bring_in(write, tmp_path):
    write(tmp_path, "cifar10", cifar10())
    shown = "print(*(m for m in sys.modules if '.' not in m))"
    read = f"hessabs.data.load('cifar10', data_dir={str(tmp_path)!r})"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; import hessabs.data; {shown}; {read}; {shown}"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    imported, loaded = (set(line.split()) for line in result.stdout.splitlines())
    heavy = {"tensorflow", "sklearn", "matplotlib", "grain"}
    assert not imported & {*heavy, "tensorflow_datasets", "PIL", "array_record"}
    assert "tensorflow_datasets" in loaded
    assert not heavy & loaded


@pytest.mark.realdata
def test_fashion_mnist():
    if "HESSABS_DATA_DIR" not in os.environ:
        pytest.skip("HESSABS_DATA_DIR names no folder of prepared sets")
    got = load("fashion_mnist", data_dir=os.environ["HESSABS_DATA_DIR"])
    assert got.num_classes == 10
    assert got.train["image"].shape == (60_000, 28, 28, 1)
    assert got.test["image"].shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(np.bincount(got.train["label"]), 6_000)
    np.testing.assert_array_equal(np.bincount(got.test["label"]), 1_000)
    # The published statistics of the training pixels.
    np.testing.assert_allclose(got.train["image"].mean() / 255, 0.2860, atol=5e-5)
    np.testing.assert_allclose(got.train["image"].std() / 255, 0.3530, atol=5e-5)


def test_svhn_trains_on_extra_or_on_both(write, tmp_path):
    splits = {name: cifar10()[part] for name, part in (("train", "train"), ("test", "test"), ("extra", "test"))}
    write(tmp_path, "svhn_cropped", splits)
    assert_same(load("svhn_cropped", data_dir=tmp_path, train_split="extra").train, splits["extra"])
    both = {name: [*splits["train"][name], *splits["extra"][name]] for name in splits["train"]}
    assert_same(load("svhn_cropped", data_dir=tmp_path, train_split="train+extra").train, both)
    for held_out in ("test", "train+test"):
        with pytest.raises(ValueError, match="`train_split` must leave 'test' out, the test set of"):
            load("svhn_cropped", data_dir=tmp_path, train_split=held_out)
    for wrong in ("unlabelled", "train+train"):
        with pytest.raises(ValueError, match=r"needs the splits 'train|needs the splits 'unlabelled'"):
            load("svhn_cropped", data_dir=tmp_path, train_split=wrong)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": np.zeros((2, 3, 8, 8), np.uint8)}, r"channels first: transpose them"),
        ({"image": np.zeros((2, 64), np.uint8)}, r"must be \(N, height, width, channels\)"),
        ({"image": np.zeros((3, 8, 8, 1), np.uint8)}, "same leading size, got {'image': 3, 'label': 2}"),
        ({"label": np.zeros(2)}, r"must be integers of shape \(N,\), got float64 of shape \(2,\)"),
        ({"label": np.zeros((2, 10), int)}, r"must be integers of shape \(N,\), got int64 of shape \(2, 10\)"),
        ({"label": np.array([0, 10], np.int32)}, r"must lie in 0\.\.9, got 0\.\.10"),
        ({"label": np.array([-1, 0], np.int32)}, r"must lie in 0\.\.9, got -1\.\.0"),
    ],
)
def test_data_that_fits_no_network(change, said):
    good = {"image": np.zeros((2, 8, 8, 1), np.uint8), "label": np.zeros(2, np.int32)}
    check_images(Dataset("mine", good, good, 10))
    with pytest.raises(ValueError, match=said):
        check_images(Dataset("mine", {**good, **change}, good, 10))


class Pictures:
    """Images of the caller's own, read one at a time; the last label is beyond the classes."""

    def __len__(self):
        return 11

    def __getitem__(self, index):
        return {"image": np.zeros((8, 8, 1), np.uint8), "label": np.int32(index)}


class Batches:
    """The same as a source."""

    def __len__(self):
        return 11

    def take(self, indices):
        return {"image": np.zeros((len(indices), 8, 8, 1), np.uint8), "label": indices}


@pytest.mark.parametrize("images", [Pictures(), Batches()], ids=["items", "source"])
def test_labels_that_are_not_in_memory_are_looked_at_as_they_are_read(images):
    train = check_images(Dataset("mine", images, images, 10)).train
    np.testing.assert_array_equal(train.take(np.arange(10))["label"], np.arange(10))
    with pytest.raises(ValueError, match=r"0\.\.9, got 9\.\.10: example 10 has 10"):
        train.take(np.array([9, 10]))
    rest, held = hold_out(train, 3)
    with pytest.raises(ValueError, match=r"example 10 has 10"):
        list(eval_batches(rest, 4)) + list(eval_batches(held, 4))


def test_a_data_set_without_labels():
    images = {"image": np.zeros((2, 8, 8, 1), np.uint8)}
    with pytest.raises(ValueError, match=r"need an 'image' and a 'label', got \['image'\]"):
        check_images(Dataset("mine", images, images, 10))


def test_training_and_test_images_of_two_shapes():
    one, two = ({"image": np.zeros((1, n, n, 1), np.uint8), "label": np.zeros(1, np.int32)} for n in (8, 9))
    with pytest.raises(ValueError, match=r"one shape, got \(8, 8, 1\) and \(9, 9, 1\)"):
        check_images(Dataset("mine", one, two, 10))


def test_a_test_split_without_labels_leaves_the_validation_split(write, tmp_path):
    parts = cifar10()
    hidden = {**parts["test"], "label": np.full(len(parts["test"]["label"]), -1)}
    write(tmp_path, "cifar10", {"train": parts["train"], "validation": parts["test"], "test": hidden})
    assert_same(load("cifar10", data_dir=tmp_path).test, parts["test"])
    with pytest.raises(ValueError, match="must leave 'validation' out"):
        load("cifar10", data_dir=tmp_path, train_split="train+validation")
