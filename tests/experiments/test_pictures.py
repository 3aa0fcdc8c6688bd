"""Pictures of a grid: those for which there is something to draw, and the numbers behind them."""

import json

import jax
import numpy as np
import pytest

import hessabs
from experiments import measure, overhead, pictures, report, work
from hessabs import data, models
from hessabs.training import Config
from hessabs.training.losses import evaluation_loss, scale_images
from hessabs.training.reports.results import find
from hessabs.training.saving import checkpoint
from hessabs.training.setup import init_model

CURVATURE = {
    "train": [3.0, 2.0],
    "test": [4.0, 1.0],
    "last_layer": [1.0],
    "image_0": [5.0, 0.0],
    "line_at": [-0.5, 0.0, 0.5],
    "line_train": [1.0, 0.5, 1.0],
    "line_test": [1.1, 0.6, 1.1],
}


def write(folder, *, curvature=None, tracked=False, **summary):
    folder.mkdir(parents=True)
    record = {"epoch": 1, "batch_size": 128, "lr": 0.1, "eigenvalue": 3.0}
    records = [
        {**record, **({"gradient_norm": 0.1} if tracked else {})},
        {**record, "epoch": 2, "eigenvalue": None},
    ]
    if tracked:
        records[1]["gradient_norm"] = 0.2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text(json.dumps({"seed": 0, "commit": "c", "updates": 100, **summary}))
    if curvature:
        (folder / "curvature.json").write_text(json.dumps(curvature))


def test_draws_what_there_is(tmp_path):
    write(tmp_path / "bl_128/seed0", test_accuracy=90.0)
    write(tmp_path / "bl_128/seed1", test_accuracy=90.0, commit="d")  # a group of its own
    assert pictures.draw(tmp_path, find(tmp_path)) == ["schedules.png"]
    write(tmp_path / "bl_640/seed0", test_accuracy=89.0, pgd_accuracy=60.0, curvature=CURVATURE)
    assert pictures.draw(tmp_path, find(tmp_path)) == [
        "schedules.png",
        "accuracy.png",
        "spectra.png",
        "block.png",
        "line.png",
        "single.png",
    ]
    write(tmp_path / "robust/seed0", tracked=True)
    drawn = pictures.draw(tmp_path, find(tmp_path))
    assert "tracked.png" in drawn
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_the_table_of_eigenvalues_is_over_the_seeds_that_were_measured(tmp_path):
    write(tmp_path / "bl_128/seed0")
    assert report._spectra("name", pictures.group(find(tmp_path))) == []
    for seed, top in ((1, 10.0), (2, 14.0)):
        curvature = {**CURVATURE, "num_examples": 4000, "train": [top, *(20.0 - i for i in range(1, 20))]}
        write(tmp_path / f"bl_128/seed{seed}", seed=seed, curvature=curvature)
    lines = report._spectra("name", pictures.group(find(tmp_path)))
    assert "| bl_128 | 1, 2 | 12 ± 2.83 | 16 | 1 | 4 | 1 |" in lines
    assert "first 4000 images" in lines[1]


def test_columns_are_read_from_the_names(tmp_path):
    for name in ("bl_128", "absa_640", "timer"):
        write(tmp_path / f"{name}/seed0")
    groups = pictures.group(find(tmp_path))
    assert {m: [c for c, _ in points] for m, points in pictures._by_method(groups).items()} == {
        "absa": [640],
        "bl": [128],
    }
    assert list(pictures._one_column({"bl_128": [], "absa_640": [], "timer": []})) == ["absa_640"]
    assert list(pictures._one_column({"a_64": [], "b_64": [], "a_640": []})) == ["a_64", "b_64"]
    assert list(pictures._one_column({"timer": []})) == ["timer"]


def test_the_time_table_is_that_of_the_slides(tmp_path):
    write(tmp_path / "bl_128/seed0", updates=1000)
    write(tmp_path / "absa_16000/seed0", updates=100)
    times = {"compute": 0.02, "adversarial": 0.03, "communicate": 0.01, "hessian": 1.0}
    # 1000 * 0.03 + 1 * 1.0 (the record has one measurement), and 100 * 0.04 + 1.0
    assert overhead.totals(times, tmp_path) == [
        "| bl_128 | 1,000 | 1 | 31.0 | 1.00 x | 3.2 % |",
        "| absa_16000 | 100 | 1 | 5.0 | 6.20 x | 20.0 % |",
    ]


@pytest.mark.slow
def test_curvature_of_a_trained_run(tmp_path):
    config = Config(dataset="digits", method="bl", epochs=1, batch_size=128)
    source = {"command": "test", "commit": "c" * 40, "hardware": "none"}
    summary = work.do(tmp_path, config, source, None)
    dataset = data.load("digits")
    record = measure.measure(tmp_path, summary, dataset, 200)
    assert record["residual"] < 1e-2
    assert len(record["train"]) == len(record["test"]) == len(record["last_layer"]) == 20
    model = models.create("mlp", 10)
    params, model_state = checkpoint.load_params(tmp_path, *init_model(model, config, dataset))
    loss_fn = evaluation_loss(model, model_state)
    batch = dataset.train.take(np.arange(200))
    batch = scale_images({**batch, "weight": np.ones(200, np.float32)})
    assert record["line_train"][10] == pytest.approx(float(loss_fn(params, batch)), rel=1e-5)
    assert min(record["line_train"][0], record["line_train"][20]) > record["line_train"][10]
    top = hessabs.power_iteration(
        hessabs.hessian(loss_fn, params, batch), jax.tree.map(np.ones_like, params), max_iters=200, rtol=1e-3
    )
    assert record["train"][0] == pytest.approx(float(top.eigenvalue), rel=2e-2)
    assert record["train"][0] >= record["last_layer"][0]  # a block's eigenvalue is never the larger one
