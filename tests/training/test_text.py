"""Text by name through the command line: trained, looked at, and what is for images refused in one line."""

import json
import math

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hessabs.cli.main import main
from hessabs.data import load
from hessabs.data.order import sample_places
from hessabs.training import load_trained
from hessabs.training.look.report import render

pytestmark = pytest.mark.slow
LENGTH = 6
NET = """\
from hessabs import models


def tiny(num_classes):
    return models.char_transformer(num_classes, layers=1, width=4, heads=2)
"""
SMALL = (
    f"--sequence_length={LENGTH}",
    "--method=gns",
    "--optimizer=adamw",
    "--schedule=linear",
    "--lr=0.02",
    "--batch_size=16",
    "--micro_batch_size=8",
    "--max_batch_size=32",
    "--epochs=3",
    "--validation_examples=10",
    "--hessian_batch_size=16",
    "--hessian_iters=2",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a text, a network and the run of both."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "net.py").write_text(NET)
    (folder / "a.txt").write_text("one two three, one two; " * 60)
    assert train(folder, f"--model={folder}/net.py:tiny") == 0
    return folder


def train(home, *flags, run="run"):
    return main(["train", f"--dataset=text:{home}/a.txt", f"--workdir={home / run}", *SMALL, *flags])


def refused(capsys, said):
    *notes, line = capsys.readouterr().err.splitlines()
    assert said in line
    assert all("different ones known" in note for note in notes)  # which text it is


def test_a_run_says_losses_by_character(home, capsys):
    records = [json.loads(line) for line in (home / "run/metrics.jsonl").read_text().splitlines()]
    uniform = math.log(load(f"text:{home}/a.txt").num_classes)
    assert records[0]["train_loss"] == pytest.approx(uniform, rel=0.2)
    assert records[-1]["train_loss"] < 0.8 * records[0]["train_loss"]
    assert 0 < records[-1]["test_token_accuracy"] <= 100
    assert "test_accuracy" not in records[-1]
    summary = json.loads((home / "run/summary.json").read_text())
    assert summary["test_loss"] == records[-1]["test_loss"]
    assert summary["validation_loss"] < uniform
    assert (summary["sequence_length"], summary["text"]["characters"]) == (LENGTH, 24 * 60)
    page = render(home)
    assert all(f"<th>{title}</th>" in page for title in ("validation loss", "test loss", "test token %"))
    capsys.readouterr()

    assert main(["evaluate", f"--workdir={home / 'run'}"]) == 0
    said = capsys.readouterr().out
    assert f"loss                 {summary['test_loss']:.6g}"[:24] in said
    assert f"token_accuracy       {summary['test_token_accuracy']:.2f}%" in said
    assert train(home, f"--model={home}/net.py:tiny", "--resume") == 0
    assert "has finished" in capsys.readouterr().err


@pytest.mark.slow  # cold, half of the time of this file
def test_its_spectrum_is_that_of_the_dense_hessian(home, capsys):
    flags = ("--top=2", "--batch_size=32", "--num_examples=48", "--rtol=1e-4")
    assert main(["spectrum", f"--workdir={home / 'run'}", *flags]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    got = [float(row[2]) for row in rows if row[0] == "training"]
    task, params, model_state, _ = load_trained(home / "run")
    flat, unravel = ravel_pytree(params)
    batch = {**task.train.take(sample_places(48, len(task.train))), "weight": np.ones(48, np.float32)}
    loss = lambda x: task.loss(unravel(x), model_state, batch, jax.random.key(0), False).mean  # noqa: E731
    want = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat))[::-1]
    np.testing.assert_allclose(got, want[:2], rtol=1e-3)


def test_another_text_is_read_with_the_characters_of_the_run(home, capsys):
    before = load_trained(home / "run").task.settings["text"]
    kept = (home / "a.txt").read_text()
    try:
        (home / "a.txt").write_text("ONE TWO, one two three ..." * 60)
        assert capsys.readouterr().err == ""
        task = load_trained(home / "run").task
    finally:
        (home / "a.txt").write_text(kept)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"It is not the text of the run, SHA-256 {before['sha256'][:16]}, whose characters are known" in line
    assert task.settings["text"]["vocabulary"] == before["vocabulary"]
    assert task.num_classes == len(before["vocabulary"]) + 1
    assert (task.train["tokens"] == len(before["vocabulary"])).any()


def test_a_record_that_is_damaged(home, capsys):
    path = home / "run/config.json"
    kept = path.read_text()
    try:
        record = json.loads(kept)
        record["config"]["text"] = {"sha256": 3}
        path.write_text(json.dumps(record))
        assert main(["evaluate", f"--workdir={home / 'run'}"]) == 2
    finally:
        path.write_text(kept)
    refused(capsys, "The record of the text of the run in")


def test_what_is_for_images_is_refused(home, capsys):
    workdir = f"--workdir={home / 'run'}"
    assert main(["attack", workdir]) == 2
    refused(capsys, "cannot be attacked: its inputs are not continuous")
    assert main(["predict", workdir, "a.png"]) == 2
    refused(capsys, "predicts no classes")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "`model` must be one of char_transformer, char_transformer_small, or FILE.py:factory, for text:"),
        (("--model=c1",), "which is text, got 'c1'"),
        (("--model=char_transformer", "--dataset=digits"), "for digits, which is no text, got 'char_tr"),
        (("--model=mlp", "--dataset=digits"), "`sequence_length` is for text, which digits is not"),
        (("--model=char_transformer", "--augment=crop_flip"), "`augment` is for images"),
        (("--model=char_transformer", "--resize=8"), "is text: leave resize, got 8"),
    ],
)
def test_flags_that_do_not_fit(home, capsys, flags, said):
    assert train(home, *flags, run="refused") == 2
    refused(capsys, said)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--robust=free", "needs continuous inputs"),
        ("--robust=pgd", "cannot be attacked: its inputs are not continuous"),
        ("--method=absa", "cannot be attacked: its inputs are not continuous"),
    ],
)
def test_characters_are_not_attacked_while_training(home, capsys, flag, said):
    assert train(home, f"--model={home}/net.py:tiny", flag, run="refused") == 2
    refused(capsys, said)


def test_a_plan_measures_its_times(home, capsys):
    flags = (f"--dataset=text:{home}/a.txt", f"--sequence_length={LENGTH}", f"--model={home}/net.py:tiny")
    assert main(["plan", *flags, "--measure_times", "--method=bl", "--batch_size=8", "--epochs=1"]) == 0
    assert "seconds:" in capsys.readouterr().out
