"""ABSA on all 60,000 images of Fashion-MNIST; needs the prepared set in $HESSABS_DATA_DIR."""

import json
import math
import os

import pytest

from hessabs import cli
from hessabs.training.files import read_lines

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data_dir = os.environ.get("HESSABS_DATA_DIR")
    if not data_dir:
        pytest.fail("set HESSABS_DATA_DIR to the folder with the prepared fashion_mnist (make fashion-mnist)")
    workdir = tmp_path_factory.mktemp("realdata") / "absa"
    status = cli.main(
        [
            "train",
            "--dataset=fashion_mnist",
            f"--data_dir={data_dir}",
            "--model=mlp",
            "--method=absa",
            "--epochs=3",
            "--batch_size=128",
            "--max_batch_size=1024",
            "--patience=1",
            "--epsilon=0.02",
            f"--workdir={workdir}",
        ]
    )
    assert status == 0
    return json.loads((workdir / "summary.json").read_text()), read_lines(workdir / "metrics.jsonl")


def test_updates_and_samples_are_exact(trained):
    summary, records = trained
    # 468 micro-batches of 128 an epoch; the batch doubles at the end of each.
    assert [record["updates"] for record in records] == [468, 468 + 234, 468 + 234 + 117]
    assert [record["samples"] for record in records] == [59_904, 119_808, 179_712]
    assert [record["batch_size"] for record in records] == [128, 256, 512]
    assert summary["updates"] == 819


def test_accuracy(trained):
    summary, records = trained
    assert summary["test_accuracy"] == records[-1]["test_accuracy"] > 80
    assert 10 < summary["fgsm_accuracy"] < summary["test_accuracy"]
    assert records[0]["train_loss"] > records[-1]["train_loss"] > 0


def test_eigenvalues(trained):
    summary, records = trained
    for record in (*records, {"eigenvalue": summary["eigenvalue"], "residual": summary["eigenvalue_residual"]}):
        assert record["eigenvalue"] > 0
        assert math.isfinite(record["eigenvalue"])
        assert 0 <= record["residual"] < 0.5


def test_each_function_is_compiled_once(trained):
    summary, _ = trained
    assert summary["compilations"] == {"begin": 1, "add": 1, "finish": 1, "whole": 1}
