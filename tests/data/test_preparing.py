"""A data set that is not prepared is prepared by `hessabs train`, before it trains."""

import hashlib
import io
import zipfile

import numpy as np
import pytest

from hessabs import cli
from hessabs.cli import train
from hessabs.data import catalog, load

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 4, 3)).astype(np.uint8)


@pytest.fixture
def begun(monkeypatch):
    """The tasks that are trained on, one step before they are."""
    tasks = []

    def fit(task, *args, **kwargs):
        tasks.append(task)
        raise FloatingPointError("that is enough")

    monkeypatch.setattr(train, "fit", fit)
    return tasks


class Standin:
    """What TFDS's builder does, as far as it is used here."""

    def __init__(self, data_dir, image=None):
        self.data_path = data_dir / "cifar10/3.0.2"
        self.features = {"image": image or tfds.features.Image(), "label": tfds.features.ClassLabel()}
        self.info = self
        self.prepared = 0

    def download_and_prepare(self):
        from tests.tfds_writer import write_dataset

        self.prepared += 1
        print("Downloading")
        split = {"image": list(IMAGES), "label": list(range(7))}
        write_dataset(self.data_path.parents[1], "cifar10", {"train": split, "test": split})


@pytest.fixture
def builder(tmp_path, monkeypatch):
    made = Standin(tmp_path / "data")
    monkeypatch.setattr(tfds, "builder", lambda name, **options: made)
    monkeypatch.setattr(catalog, "can_prepare", lambda: True)
    return made


def run(tmp_path, *flags, name="cifar10"):
    place = [f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}", "--batch_size=7"]
    return cli.main(["train", f"--dataset={name}", *place, *flags])


def test_a_set_is_prepared_once_and_trained_on(tmp_path, builder, begun, capsys):
    for _ in range(2):
        assert run(tmp_path) == 2  # as the stand-in for training ends
    first, second = begun
    np.testing.assert_array_equal(first.train["image"], IMAGES)
    assert len(second.train) == 7
    assert builder.prepared == 1
    out, err = capsys.readouterr()
    said, downloading, *rest = err.splitlines()
    assert said == (
        f"hessabs: 'cifar10' is not prepared yet: TFDS downloads it and prepares it in {builder.data_path}, "
        "which may take minutes (--no_download refuses that)."
    )
    assert (out, downloading, rest) == ("", "Downloading", ["hessabs: that is enough"] * 2)


@pytest.mark.parametrize(
    ("harm", "flags", "said"),
    [
        (lambda b: None, ["--no_download"], "No data set 'cifar10' in"),
        (lambda b: None, ["--patience=-1"], "`patience` must be at least 0"),  # before anything is downloaded
        (lambda b: b.features.pop("label"), [], "is no image classification set"),
        (lambda b: b.features.update(image=tfds.features.Image(dtype=np.uint16)), [], "must be uint8"),
    ],
)
def test_what_cannot_be_trained_on_is_not_downloaded(tmp_path, builder, begun, capsys, harm, flags, said):
    harm(builder)
    assert run(tmp_path, *flags) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert (builder.prepared, begun) == (0, [])


@pytest.mark.parametrize(
    "error",
    [
        tfds.core.download.download_manager.NonMatchingChecksumError("another\nchecksum"),
        tfds.core.download.util.DownloadError("HTTP 404"),
        ConnectionError("no network"),
    ],
)
def test_a_preparation_that_fails_is_one_line_more(tmp_path, builder, begun, capsys, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(builder, "download_and_prepare", fail)
    assert run(tmp_path) == 2
    _, last = capsys.readouterr().err.splitlines()
    assert " ".join(str(error).split()) in last
    assert begun == []


def test_several_processes_prepare_nothing(tmp_path, builder, begun, capsys, monkeypatch):
    monkeypatch.setattr(train.jax, "process_count", lambda: 2)
    with pytest.raises(catalog.NotPreparedError):
        train._assemble({"dataset": "cifar10", "data_dir": str(tmp_path)})
    assert builder.prepared == 0


@pytest.mark.slow
@pytest.mark.parametrize("damaged", [False, True])
def test_tfds_downloads_checks_and_prepares(tmp_path, begun, capsys, damaged):
    """A builder of TFDS, whose archive is a file of this machine."""
    pytest.importorskip("tensorflow", reason="the extra `prepare` is not installed")
    archive = tmp_path / "tiny.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for number, image in enumerate(IMAGES):
            content = io.BytesIO()
            np.save(content, image)
            file.writestr(f"{number}.npy", content.getvalue())
    url, content = f"file://{archive}", archive.read_bytes()
    digest = hashlib.sha256(b"other" if damaged else content).hexdigest()
    known = {url: tfds.core.download.checksums.UrlInfo(size=len(content), checksum=digest, filename="tiny.zip")}

    class TinyLocal(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = f"tiny_local_{damaged}".lower()
        url_infos = known

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 4, 3)),
                "label": tfds.features.ClassLabel(num_classes=7),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            folder = manager.download_and_extract(url)
            return {"train": self._generate_examples(folder), "test": self._generate_examples(folder)}

        def _generate_examples(self, folder):
            for number in range(7):
                with (folder / f"{number}.npy").open("rb") as file:
                    yield number, {"image": np.load(file), "label": number}

    assert run(tmp_path, name=TinyLocal.name) == 2
    err = capsys.readouterr().err
    if damaged:
        assert begun == []
        assert f"hessabs: TFDS cannot prepare '{TinyLocal.name}': Artifact {url}" in err
        return
    assert f"prepares it in {tmp_path / 'data' / TinyLocal.name / '1.0.0'}, which may" in err
    assert "Dl Completed" in err  # the progress
    [task] = begun
    order = np.argsort(task.train["label"])
    np.testing.assert_array_equal(task.train["image"][order], IMAGES)
    [entry] = catalog.list_sets(tmp_path / "data")
    assert (entry.examples, entry.problem) == ({"train": 7, "test": 7}, "")
    assert len(load(TinyLocal.name, data_dir=tmp_path / "data").test) == 7
