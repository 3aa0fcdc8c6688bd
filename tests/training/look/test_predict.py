"""Predictions: probabilities against a softmax by hand, names of classes, tables, and complaints."""

import csv
import json

import jax
import numpy as np
import PIL.Image
import pytest

from hessabs import cli, data
from hessabs.training import tasks
from hessabs.training.look.predict import predict, predict_files
from tests.training.look import kinds

PLACES = (0, 50, 99)
pytestmark = pytest.mark.sampled


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run on digits; the working directory has some of its images as files."""
    run = kinds.images()
    run = run._replace(task=run.task._replace(class_names=tuple(f"digit {i}" for i in range(10))))
    for place, image in zip(PLACES, run.task.test.take(np.array(PLACES))["image"], strict=True):
        PIL.Image.fromarray(image[..., 0]).save(tmp_path / f"{place}.png")
    PIL.Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no image")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: run)
    return run


def softmax(run, images):
    z = np.asarray(kinds.Small().apply({"params": run.params}, images.astype(np.float32) / 255), np.float64)
    return np.exp(z) / np.exp(z).sum(1, keepdims=True)


def test_probabilities_are_those_of_a_softmax_by_hand(run):
    images = run.task.test.take(np.arange(23))["image"]
    got = predict(*run[:3], images, batch_size=10)
    np.testing.assert_allclose(got, softmax(run, images), atol=1e-6)
    scaled = predict(*run[:3], images.astype(np.float32) / 255)
    np.testing.assert_allclose(scaled, got, atol=1e-6)


def test_the_command_prints_and_writes(run, tmp_path, capsys):
    files = [f"{place}.png" for place in PLACES]
    want = softmax(run, run.task.test.take(np.array(PLACES))["image"])
    output = tmp_path / "out.json"
    assert cli.main(["predict", "--workdir=w", *files, f"--output={output}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(output.read_text())["predictions"]
    for file, line, row, each in zip(files, lines[1:], rows, want, strict=False):
        assert line.split() == [file, f"{each.max():.4f}", "digit", str(each.argmax())]
        assert (row["image"], row["label"], row["class"]) == (file, each.argmax(), f"digit {each.argmax()}")
        np.testing.assert_allclose(row["probabilities"], each, atol=1e-6)
    assert lines[-1] == f"predictions: {output}"
    assert cli.main(["predict", "--workdir=w", *files, f"--output={tmp_path / 'out.csv'}"]) == 0
    with (tmp_path / "out.csv").open() as file:
        (first, *_) = csv.DictReader(file)
    assert float(first.pop("probability")) == pytest.approx(want[0].max(), abs=1e-6)
    assert first == {"image": "0.png", "class": f"digit {want[0].argmax()}", "label": str(want[0].argmax())}
    unnamed = run.task._replace(class_names=None)
    assert predict_files(unnamed, *run[1:3], ["0.png"])[0]["class"] == str(want[0].argmax())
    assert cli.main(["predict", "--workdir=w", "large.png", "--resize=8"]) == 0


def test_the_name_of_a_class_does_not_steer_the_terminal(run, monkeypatch, capsys, tmp_path):
    names = tuple(f"a\x1b[31mred\u202e{i}" for i in range(10))
    other = run._replace(task=run.task._replace(class_names=names))
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: other)
    image = tmp_path / "b\x1b[2J.png"
    (tmp_path / "0.png").rename(image)
    assert cli.main(["predict", "--workdir=w", image.name, "--output=out.json"]) == 0
    out = capsys.readouterr().out
    assert "b[2J.png" in out
    assert "a[31mred" in out
    assert all(character.isprintable() or character == "\n" for character in out)
    (row,) = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert row["class"] in names  # a file has the name as it is
    assert cli.main(["predict", "--workdir=w", "c\x1b[2J.png"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=w"], "name images, as in `hessabs predict --workdir W IMAGE...`, got none"),
        (["--workdir=w", "large.png"], "large.png is 9x9 and those of the data set are 8x8"),
        (["--workdir=w", "text.png"], "The image text.png cannot be read"),
        (["--workdir=w", "no/such.png"], "no/such.png"),
        (["--workdir=w", "0.png", "--output=x.xml"], "`output` must end in .json or .csv, got x.xml"),
        (["--workdir=w", "0.png", "--output=no/such.csv"], "`output` no/such.csv cannot be used"),
    ],
)
def test_what_cannot_be_used_ends_in_one_line(run, capsys, arguments, message):
    assert cli.main(["predict", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_tasks_without_classes_and_other_shapes_are_refused(run):
    for kind in (kinds.tokens, kinds.plain):
        with pytest.raises(ValueError, match="predicts no classes"):
            predict(*kind()[:3], np.zeros((2, 8), np.int32))
        with pytest.raises(ValueError, match="predicts no classes"):
            predict_files(*kind()[:3], ["0.png"])
    with pytest.raises(ValueError, match=r"shape \(n, 8, 8, 1\), got shape \(2, 9, 8, 1\)"):
        predict(*run[:3], np.zeros((2, 9, 8, 1), np.uint8))
    with pytest.raises(ValueError, match=r"at least one input .* got shape \(0, 8, 8, 1\)"):
        predict(*run[:3], np.zeros((0, 8, 8, 1), np.uint8))
    flat = run.task._replace(logits=lambda *args: jax.numpy.sum(run.task.logits(*args), axis=-1))
    with pytest.raises(ValueError, match=r"the shape \(n, classes\), got \(2,\)"):
        predict(flat, *run[1:3], np.zeros((2, 8, 8, 1), np.uint8))


def test_files_are_refused_where_inputs_have_another_scale(run):
    floats = data.as_source({"image": np.zeros((3, 8, 8, 1), np.float32), "label": np.zeros(3, np.int32)})
    centred = tasks.linen(kinds.Small(), (floats, floats), num_classes=10, bounds=(-1, 1), name="centred")
    with pytest.raises(ValueError, match=r"inputs of centred are float32 in \(-1, 1\): prepare images as"):
        predict_files(centred, run.params, run.model_state, ["0.png"])
    cropped = run.task._replace(settings={"image_size": 8})
    with pytest.raises(ValueError, match="`resize` is not read: the run brings images to image_size=8"):
        predict_files(cropped, run.params, run.model_state, ["0.png"], resize=9)
