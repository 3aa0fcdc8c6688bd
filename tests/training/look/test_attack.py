"""The attack command on trained runs: files, numbers, what a kill leaves, and complaints."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from hessabs.training.analysis import finished
from hessabs.training.analysis.attack import Options, attack, stem
from hessabs.training.analysis.trained import load_trained

from hessabs import attacks, cli
from hessabs.attacks import losses
from hessabs.training import metrics

pytestmark = pytest.mark.usefixtures("quick_compilation")
SMALL = {"attack": "fgsm,pgd", "epsilon": "0.03,0.1", "steps": 5, "num_examples": 80, "batch_size": 40}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        flags = ["--dataset=digits", "--method=bl", "--epochs=1", "--lr_decay_epochs=", f"--seed={seed}"]
        assert cli.main(["train", *flags, f"--workdir={folder / str(seed)}"]) == 0
    return folder


def logits(run, images):
    return run.model.apply({"params": run.params, **run.model_state}, images, train=False)


def withstood(run, maker, epsilon):
    """The accuracy of a run under FGSM made on another one, counted by hand on the first 80 test images."""
    image, label = run.dataset.test["image"][:80], run.dataset.test["label"][:80]
    batch = {"image": image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1), "label": label}
    loss_fn = losses.cross_entropy(lambda params, x: logits(maker, x))
    got = attacks.fgsm(epsilon)(loss_fn, None, batch)["image"]
    clean, moved = (np.argmax(np.asarray(logits(run, x)), axis=-1) == label for x in (batch["image"], got))
    return (clean & moved).mean()


def test_numbers_files_and_transfer(runs, capsys):
    run, other = load_trained(runs / "0"), load_trained(runs / "1")
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    assert cli.main(["attack", f"--workdir={runs / '0'}", *flags]) == 0
    assert "worst case" in capsys.readouterr().out
    assert cli.main(["attack", f"--workdir={runs / '0'}", *flags, f"--source={runs / '1'}"]) == 0
    assert cli.main(["attack", f"--workdir={runs / '0'}", "--attack=fgsm", "--epsilon=8/255"]) == 0
    options = Options(**SMALL)
    assert json.loads((runs / "0" / f"{stem(Options('fgsm', '8/255'))}.json").read_text())["rows"][1][
        "epsilon"
    ] == pytest.approx(0.031372549, rel=1e-8)
    kinds = ((stem(options), run), (stem(options._replace(source=str(runs / "1"))), other))
    for name, maker in kinds:  # a later table has left the earlier ones alone
        record = json.loads((runs / "0" / f"{name}.json").read_text())
        assert [row["attack"] for row in record["rows"]] == ["clean", *["fgsm", "pgd", "worst case"] * 2]
        assert record["images"] == 80
        for row in record["rows"]:
            if row["attack"] == "fgsm":
                assert row["accuracy"] == pytest.approx(withstood(run, maker, row["epsilon"]), abs=1e-6)
                assert 0 < row["mean_relative"] <= row["max_relative"]
                assert row["seconds_per_image"] > 0
        with (runs / "0" / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == len(record["rows"])
        for picture in (f"{name}.png", f"{name}_sheet.png"):
            assert (runs / "0" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("keep_fallen", [True, False])
def test_what_fell_at_a_smaller_epsilon_stays_fallen_unless_told_otherwise(runs, keep_fallen):
    run = load_trained(runs / "0")
    image, label = run.dataset.test["image"][:80], run.dataset.test["label"][:80]
    batch = {"image": image.astype(np.float32) / (255 if image.dtype == np.uint8 else 1), "label": label}
    loss_fn = losses.cross_entropy(lambda params, x: logits(run, x))
    want = attacks.evaluate(
        loss_fn, None, batch, {"fgsm": attacks.fgsm}, [0.9, 0.3, 0.1], keep_fallen=keep_fallen
    )
    options = Options(**{**SMALL, "attack": "fgsm", "epsilon": "0.9,0.3,0.1"})
    got = attack(runs / "0", options if keep_fallen else options._replace(keep_fallen=False))
    accuracies = [row["accuracy"] for row in got["rows"]]
    assert accuracies == [row.accuracy for row in want]
    assert got["warnings"] == []
    if keep_fallen:
        assert accuracies == [accuracies[0], *sorted(accuracies[1:])]


@pytest.mark.slow
def test_a_kill_loses_no_finished_chunk(runs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(runs / "0", workdir)
    shutil.rmtree(workdir / metrics.ATTACKS, ignore_errors=True)
    options = {**SMALL, "epsilon": "0.1", "restarts": 2, "batch_size": 8}
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "hessabs.cli", "attack", f"--workdir={workdir}", *flags]
    root = str(pathlib.Path(cli.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((workdir / metrics.ATTACKS).glob("pgd-*.npz")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in (workdir / metrics.ATTACKS).glob("*.npz")}
    assert process.returncode == -signal.SIGKILL
    assert len(kept) < 3 * 10  # clean, fgsm and pgd on 10 chunks
    resumed = attack(workdir, Options(**options))
    after = {path.name: path.stat().st_mtime_ns for path in (workdir / metrics.ATTACKS).glob("*.npz")}
    assert len(after) == 3 * 10
    assert kept.items() <= after.items()
    shutil.rmtree(workdir / metrics.ATTACKS)
    whole = attack(workdir, Options(**options))
    for got, want in zip(resumed["rows"], whole["rows"], strict=True):
        times = {"seconds_per_image": 0, "seconds_compile": 0}
        assert {**got, **times} == {**want, **times}


def test_compilation_is_no_time_of_an_image(runs, tmp_path):
    # Two epsilons of one attack do the same work; the first one alone compiles.
    workdir = tmp_path / "run"
    shutil.copytree(runs / "0", workdir)
    shutil.rmtree(workdir / metrics.ATTACKS, ignore_errors=True)
    jax.clear_caches()
    options = Options(attack="bim", epsilon="0.11,0.12", steps=7, num_examples=50, batch_size=50)
    first, second = attack(workdir, options)["rows"][1:]
    assert first["seconds_compile"] > 0.2
    assert second["seconds_compile"] < first["seconds_compile"] / 4
    # 50 images: what it compiled for, counted as theirs, would be most of their time.
    assert 50 * first["seconds_per_image"] < first["seconds_compile"]


def test_another_network_or_other_options_find_nothing(runs, tmp_path):
    options = Options(attack="fgsm", epsilon="0.1", num_examples=20)
    workdir = tmp_path / "run"
    shutil.copytree(runs / "0", workdir)
    shutil.rmtree(workdir / metrics.ATTACKS, ignore_errors=True)
    attack(workdir, options)
    first = set((workdir / metrics.ATTACKS).iterdir())
    attack(workdir, options._replace(norm="l2"))
    second = set((workdir / metrics.ATTACKS).iterdir())
    assert len(second) == 2 * len(first) == 4
    shutil.rmtree(workdir / metrics.PARAMS)
    shutil.copytree(runs / "1" / metrics.PARAMS, workdir / metrics.PARAMS)
    want = attack(runs / "1", options)["rows"]
    got = attack(workdir, options)["rows"]
    assert [row["accuracy"] for row in got] == [row["accuracy"] for row in want]
    assert len(set((workdir / metrics.ATTACKS).iterdir())) == 6


def test_a_file_that_is_damaged_counts_for_nothing(tmp_path):
    arrays = {"stands": np.array([True, False])}
    identity = finished.identify(what="pgd", epsilon=0.1)
    finished.keep(tmp_path, "pgd", identity, arrays)
    np.testing.assert_array_equal(finished.find(tmp_path, "pgd", identity)["stands"], arrays["stands"])
    assert finished.find(tmp_path, "pgd", finished.identify(what="pgd", epsilon=0.2)) is None
    (path,) = tmp_path.iterdir()
    for damaged in (path.read_bytes()[:-30], b"", b"\x80\x04K\x01."):
        path.write_bytes(damaged)
        assert finished.find(tmp_path, "pgd", identity) is None


def test_digests_tell_shapes_dtypes_and_values_apart():
    trees = [{"a": np.zeros(2)}, {"b": np.zeros(2)}, {"a": np.zeros((2, 1))}, {"a": np.zeros(4, np.float32)}]
    assert len({finished.digest(tree) for tree in [*trees, {"a": np.array([0.0, 1.0])}]}) == 5


def test_zero_gradients_are_said_in_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "hessabs.training.analysis.attack_chunks.evaluation_logits",
        lambda model, state: lambda params, x: jax.lax.stop_gradient(model.apply({"params": params}, x)),
    )
    workdir = tmp_path / "run"
    shutil.copytree(runs / "0", workdir)
    flags = ["--attack=fgsm", "--epsilon=0.1", "--num_examples=20"]
    shutil.rmtree(workdir / metrics.ATTACKS, ignore_errors=True)
    assert cli.main(["attack", f"--workdir={workdir}", *flags]) == 0
    error = capsys.readouterr().err
    assert "rightly classified examples is zero" in error
    assert error.count("warning: ") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--attack=fgsm", "--steps=9"], "`steps` is read by the attacks bim, pgd, mi_fgsm"),
        (["--queries=1000"], "`queries` is read by the attacks square, ensemble, and not by pgd"),
        (["--attack=pdg"], "`attack` must name some of fgsm, l2grad, bim"),
        (["--attack=l2grad"], "`attack` l2grad has the norms l2, got norm='linf'"),
        (["--norm=l3"], "`norm` must be one of ['linf', 'l2', 'l1'], got 'l3'"),
        (["--epsilon=-1"], "`epsilon` must be finite and at least 0, got -1.0"),
        (["--epsilon=a"], "`epsilon` must be numbers separated by commas, or fractions such as 8/255, got 'a'"),
        (["--epsilon=0.1,0.1"], "Name each attack and each epsilon once"),
        (["--steps=0"], "`steps` must be at least 1, got 0"),
        (["--restarts=0"], "`restarts` must be at least 1, got 0"),
        (["--batch_size=0"], "`batch_size` at least 1, got 0 and 0"),
        (["--source=nowhere"], "nowhere holds no finished run"),
    ],
)
def test_bad_options_end_in_one_line(runs, capsys, flags, message):
    assert cli.main(["attack", f"--workdir={runs / '0'}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_needs_a_run(tmp_path, capsys):
    assert cli.main(["attack", f"--workdir={tmp_path}"]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert cli.main(["attack"]) == 2
    assert "`workdir` is required" in capsys.readouterr().err
