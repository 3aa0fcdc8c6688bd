"""The spectrum command on a trained run: files, numbers and complaints."""

import csv
import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from hessabs import cli, models
from hessabs.data import load
from hessabs.training.config import Config
from hessabs.training.losses import evaluation_loss, scale_images
from hessabs.training.reports.tracked import draw_tracked
from hessabs.training.saving import checkpoint
from hessabs.training.setup import set_up
from hessabs.training.track import last_layer, parse

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A short run with everything tracked."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = ["--dataset=digits", "--method=bl", "--epochs=2", "--lr_decay_epochs=", f"--workdir={folder}"]
    assert cli.main(["train", *flags, "--track=eigenvalue,gradient_norm,last_layer_eigenvalue"]) == 0
    return folder


def test_tracked_numbers_are_in_every_line(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    run = set_up(Config(method="bl", epochs=2, lr_decay_epochs=()))
    params, model_state = checkpoint.load_params(workdir, run.state.params, run.state.model_state)
    train = load("digits").train
    batch = scale_images({**train, "weight": np.ones(len(train["label"]), np.float32)})
    loss = evaluation_loss(models.create("mlp", 10), model_state)
    gradient = jax.flatten_util.ravel_pytree(jax.grad(loss)(params, batch))[0]
    np.testing.assert_allclose(lines[-1]["gradient_norm"], np.linalg.norm(gradient), rtol=1e-3)
    for line in lines:
        assert 0 < line["last_layer_eigenvalue"] < line["eigenvalue"] * 1.01


def test_writes_numbers_and_pictures(workdir, capsys):
    flags = ["--top=3", "--per_example=1", "--block=last", "--num_examples=100", "--batch_size=40"]
    assert cli.main(["spectrum", f"--workdir={workdir}", *flags, "--density", "--landscape"]) == 0
    assert "training, last layer" in capsys.readouterr().out
    record = json.loads((workdir / "spectrum.json").read_text())
    rows = record["eigenvalues"]
    with (workdir / "spectrum.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows) == 3 * 5
    assert all(row["converged"] and row["residual"] <= 1e-3 for row in rows if row["number"] == 1)
    top = {row["matrix"]: row["eigenvalue"] for row in rows if row["number"] == 1}
    assert top["training, last layer"] < top["training"]
    for name in ("spectrum", "examples", "tracked", "density", "line", "plane"):
        assert (workdir / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    line = np.array(json.loads((workdir / "landscape.json").read_text())["line"])
    assert np.diff(line, 2)[9] > 0  # the loss curves upwards along the top eigenvector


def test_tracked_curves_are_drawn_as_recorded(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    records = [
        {"epoch": 1, "eigenvalue": 3.0, "last_layer_eigenvalue": 1.0, "gradient_norm": 0.5},
        {"epoch": 2, "eigenvalue": None, "last_layer_eigenvalue": 2.0, "gradient_norm": 0.25},
        {"epoch": 3, "eigenvalue": 4.0, "last_layer_eigenvalue": 3.0, "gradient_norm": 0.125},
    ]
    assert draw_tracked(tmp_path / "tracked.png", records)
    eigenvalues, gradient = drawn[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in eigenvalues.lines}
    assert lines == {"whole network": [[1, 3], [3, 4]], "last layer's block": [[1, 1], [2, 2], [3, 3]]}
    assert gradient.lines[0].get_ydata().tolist() == [0.5, 0.25, 0.125]
    assert not draw_tracked(tmp_path / "none.png", [{"epoch": 1, "eigenvalue": None}])
    assert len(drawn) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--save_seconds=-1"], "`save_seconds` must not be negative, got -1.0"),
        (["--top=0"], "`top` must be at least 1, got 0"),
        (["--block=first"], '`block` must be "last" or empty'),
        (["--max_matvecs=5"], "`max_matvecs` must be at least `top`=20, got 5"),
        (["--per_example=-1"], "`per_example` must not be negative"),
    ],
)
def test_bad_options_end_in_one_line(workdir, capsys, flags, message):
    assert cli.main(["spectrum", f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_missing_run_and_unknown_track_are_refused(tmp_path, capsys):
    assert cli.main(["spectrum", f"--workdir={tmp_path}"]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert cli.main(["spectrum"]) == 2
    assert "`workdir` is required" in capsys.readouterr().err
    assert cli.main(["train", f"--workdir={tmp_path / 'new'}", "--track=loss"]) == 2
    assert "`track` must name some of eigenvalue, gradient_norm" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_last_layer_is_the_last_matrix_with_an_output_for_each_class():
    params = {"Dense_0": {"kernel": np.ones((4, 10))}, "Dense_1": {"kernel": np.ones((10, 10))}}
    assert last_layer(params, 10) == "Dense_1"
    with pytest.raises(ValueError, match="no matrix with 7 outputs"):
        last_layer(params, 7)
    assert parse("") == ()
