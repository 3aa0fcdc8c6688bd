"""``hessabs data``: what is on disk, whether it is whole, and Tiny ImageNet from a miniature of its archive."""

import hashlib
import io
import zipfile

import numpy as np
import pytest

from hessabs.cli.main import main
from hessabs.data import load
from hessabs.data.catalog import list_sets, prepare

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
Image = pytest.importorskip("PIL.Image", reason="the extra `data` is not installed")

NAMES = ["n03", "n01", "n02"]  # the archive's order, which is not the alphabet's
PER_CLASS, NUM_VALIDATION = 2, 4


@pytest.fixture
def prepared(tmp_path):
    from tests.tfds_writer import write_dataset

    rng = np.random.default_rng(0)
    image = list(rng.integers(0, 256, (7, 4, 4, 3)).astype(np.uint8))
    split = {"image": image, "label": list(range(7))}
    write_dataset(tmp_path, "cifar10", {"train": split, "test": split}, shards=2)
    return tmp_path


def shard(prepared):
    return prepared / "cifar10/3.0.2/cifar10-train.array_record-00001-of-00002"


def test_a_whole_set(prepared, capsys):
    [entry] = list_sets(prepared)
    size = sum(path.stat().st_size for path in (prepared / "cifar10/3.0.2").iterdir())
    assert entry == ("cifar10", "3.0.2", {"train": 7, "test": 7}, size, "")
    assert main(["data", "list", f"--data_dir={prepared}"]) == 0
    assert "cifar10                  3.0.2" in capsys.readouterr().out


def test_the_name_of_a_folder_does_not_steer_the_terminal(prepared, capsys):
    (prepared / "cifar10").rename(prepared / "cifar\x1b[31m10")
    main(["data", "list", f"--data_dir={prepared}"])
    out = capsys.readouterr().out
    assert "cifar[31m10" in out
    assert "\x1b" not in out


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-20])


def replace(path):
    path.write_bytes((path.parent / "cifar10-test.array_record-00000-of-00002").read_bytes())


@pytest.mark.parametrize(
    ("harm", "said"),
    [(remove, "is missing"), (truncate, "is damaged"), (replace, "has 3 records, not 4")],
)
def test_half_a_set(prepared, capsys, harm, said):
    harm(shard(prepared))
    [entry] = list_sets(prepared)
    assert entry.problem.startswith(shard(prepared).name)
    assert said in entry.problem
    assert main(["data", "list", f"--data_dir={prepared}"]) == 1
    assert said in capsys.readouterr().out


def test_unreadable_info(prepared):
    (prepared / "cifar10/3.0.2/dataset_info.json").write_text("{")
    [entry] = list_sets(prepared)
    assert "dataset_info.json cannot be read" in entry.problem


def test_another_version_than_asked_for(prepared):
    with pytest.raises(ValueError, match=r"cifar10:1\.0\.0.*prepared there: cifar10/3\.0\.2"):
        load("cifar10:1.0.0", data_dir=prepared)


@pytest.mark.parametrize("words", [[], ["prepare"], ["list", "cifar10"], ["remove", "x"]])
def test_words_that_are_no_command(words, capsys):
    assert main(["data", *words]) == 2
    assert "`hessabs data prepare NAME`" in capsys.readouterr().err


def test_preparing_needs_tensorflow(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["data", "prepare", "cifar10", f"--data_dir={tmp_path}"]) == 2
    assert "install the extra `hessabs[prepare]`" in capsys.readouterr().err


def jpeg(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64, 3), value, np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path):
    """Grey images; their level is 10 * the number of the class + their number."""
    path, root = tmp_path / "mini.zip", "tiny-imagenet-200"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{root}/wnids.txt", "\n".join(NAMES) + "\n")
        for label, name in enumerate(NAMES):
            for i in range(PER_CLASS):
                file.writestr(f"{root}/train/{name}/images/{name}_{i}.JPEG", jpeg(40 * label + 10 * i))
        lines = []
        for i in range(NUM_VALIDATION):
            file.writestr(f"{root}/val/images/val_{i}.JPEG", jpeg(40 * (i % 3) + 5))
            lines.append(f"val_{i}.JPEG\t{NAMES[i % 3]}\t0\t0\t62\t62\n")
        file.writestr(f"{root}/val/val_annotations.txt", "".join(lines))
    return path


@pytest.fixture
def small(archive, monkeypatch):
    from hessabs.data.tiny_imagenet import TinyImagenet

    monkeypatch.setattr(TinyImagenet, "md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(TinyImagenet, "num_classes", len(NAMES))
    monkeypatch.setattr(TinyImagenet, "per_class", PER_CLASS)
    monkeypatch.setattr(TinyImagenet, "num_validation", NUM_VALIDATION)


def test_tiny_imagenet_is_prepared_and_read(archive, small, tmp_path):
    pytest.importorskip("tensorflow", reason="the extra `prepare` is not installed")
    prepare("tiny_imagenet", tmp_path / "data", archive)
    [entry] = list_sets(tmp_path / "data")
    assert (entry.name, entry.examples, entry.problem) == ("tiny_imagenet", {"train": 6, "validation": 4}, "")
    got = load("tiny_imagenet", data_dir=tmp_path / "data")
    assert got.num_classes == 3
    assert got.class_names == tuple(NAMES)
    for split in (got.train, got.test):
        assert split["image"].shape[1:] == (64, 64, 3)
        np.testing.assert_array_equal(split["image"][:, 0, 0, 0] // 35, split["label"])
    assert sorted(got.train["label"]) == [0, 0, 1, 1, 2, 2]


def test_tiny_imagenet_lists_its_images(archive, tmp_path):
    from hessabs.data.tiny_imagenet import class_names, train_images, validation_images

    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path)
    root = tmp_path / "tiny-imagenet-200"
    names = class_names(root, 3)
    train = [(path.name, label) for path, label in train_images(root, names, PER_CLASS)]
    assert train == [(f"{name}_{i}.JPEG", label) for label, name in enumerate(NAMES) for i in range(2)]
    assert [label for _, label in validation_images(root, names, NUM_VALIDATION)] == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="must have 500 training images, got 2"):
        list(train_images(root, names, 500))
    with pytest.raises(ValueError, match="must list 10000 images, got 4"):
        list(validation_images(root, names, 10_000))
    with pytest.raises(ValueError, match="must name 200 classes, got 3"):
        class_names(root, 200)


def test_another_archive_is_refused(archive):
    from hessabs.data.tiny_imagenet import MD5, check_md5

    with pytest.raises(ValueError, match=f"its MD5 is .*, not {MD5}"):
        check_md5(archive, MD5)
    check_md5(archive, hashlib.md5(archive.read_bytes()).hexdigest())
