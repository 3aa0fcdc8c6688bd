"""The command line: one line for input that cannot be used, files and a table for the rest."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hessabs
from hessabs import cli
from hessabs.cli import train
from hessabs.data import Dataset, catalog
from hessabs.training import run as run_lib
from hessabs.training.assemble import SETTINGS
from hessabs.training.fields import declared
from hessabs.training.tasks import named

SMALL = [
    "--dataset=digits",
    "--model=mlp",
    "--epochs=2",
    "--batch_size=64",
    "--max_batch_size=128",
    "--lr=0.05",
    "--lr_decay_epochs=1",
    "--hessian_batch_size=64",
    "--hessian_iters=3",
]

BAD_INPUT = [
    # (flags, what was got, what to do)
    (["--dataset=imagenet_mini"], "'imagenet_mini'", "--dataset digits"),
    (["--model=vgg"], "'vgg'", "mlp, resnet18"),
    (["--method=sgd"], "'sgd'", "bl, fb, gg, abs, absa"),
    (["--max_batch_size=64"], "got 64", "at least batch_size=128"),
    (["--max_batch_size=300"], "got 300", "the nearest below is 256"),
    (["--batch_size=2000"], "got 2000", "at most the 1437 training examples"),
    (["--max_batch_size=2048"], "got 2048", "that fits is 1408"),
    (["--lr=-0.1"], "got -0.1", "positive"),
    (["--lr=nan"], "got nan", "finite"),
    (["--lr_decay=nan"], "got nan", "(0, 1]"),
    (["--lr_decay=-1"], "got -1.0", "(0, 1]"),
    (["--momentum=nan"], "got nan", "[0, 1)"),
    (["--weight_decay=-1"], "got -1.0", "at least 0"),
    (["--epsilon=nan"], "got nan", "at least 0"),
    (["--lr_decay_epochs=60,30"], "(60, 30)", "ascending"),
    (["--lr_decay_epochs=30,x"], "'30,x'", "whole numbers separated by commas"),
    (["--epochs=many"], "many", "epochs"),
    (["--epochs=0"], "got 0", "at least 1"),
    (["--checkpoint_every=10"], "'10'", "updates, samples, min, epochs"),
    (["--keep_checkpoints=0"], "got 0", "at least 1"),
    (["--on_nan=pray"], "'pray'", "stop, rewind"),
    (["--resume", "--overwrite"], "--overwrite loses it", "pass one of them"),
    (["--no_such_flag=1"], "no_such_flag", "Unknown command line flag"),
    (["stray"], "'stray'", "--name=value"),
    (["--epsilon=8/0"], "'8/0'", "a fraction such as 8/255"),
    (["--method=absa", "--threshold=9"], "not with method=absa", "read with method=stability"),
    (["--method=abs", "--epsilon=0.005"], "not with robust=none", "leave it out"),  # its default, but given
]


def run(capsys, *argv):
    status = cli.main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def assert_refused(status, out, err, *parts):
    assert status == 2
    assert err.startswith("hessabs: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert out == ""
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("flags", "got", "advice"), BAD_INPUT, ids=lambda x: x[0] if isinstance(x, list) else ""
)
def test_bad_input_is_one_line_and_leaves_no_folder(capsys, tmp_path, flags, got, advice):
    workdir = tmp_path / "run"
    assert_refused(*run(capsys, "train", f"--workdir={workdir}", *flags), got, advice)
    assert not workdir.exists()


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
@pytest.mark.parametrize("tensorflow", [True, False])
def test_data_that_is_not_on_disk(capsys, tmp_path, monkeypatch, name, tensorflow):
    monkeypatch.setattr(catalog, "can_prepare", lambda: tensorflow)
    flags = [f"--dataset={name}", f"--data_dir={tmp_path}", *["--no_download"] * tensorflow]
    status, out, err = run(capsys, "train", *flags, f"--workdir={tmp_path / 'run'}")
    parts = (repr(name), str(tmp_path), "--dataset digits", "--data_dir", "hessabs[prepare]")
    assert_refused(status, out, err, *parts)
    assert list(tmp_path.iterdir()) == []


def test_images_that_are_none(capsys, tmp_path, monkeypatch):
    flat = {"image": np.zeros((300, 64), np.uint8), "label": np.zeros(300, np.int32)}
    monkeypatch.setattr(named, "load", lambda *args, **kwargs: Dataset("digits", flat, flat, 10))
    result = run(capsys, "train", "--model=resnet20", f"--workdir={tmp_path / 'run'}")
    assert_refused(*result, "digits", "(300, 64)", "channels last")


def test_a_model_and_images_that_do_not_fit(capsys, tmp_path):
    result = run(capsys, "train", "--model=alexnet_svhn", f"--workdir={tmp_path / 'run'}")
    assert_refused(*result, "AlexNet", "digits", "(1, 8, 8, 1)", "16x16 at least")


def test_a_package_that_is_missing(capsys, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise ImportError(
            "The data set 'x' is read with tensorflow_datasets: install the extra `hessabs[data]`."
        )

    monkeypatch.setattr(named, "load", load)
    assert_refused(*run(capsys, "train", f"--workdir={tmp_path / 'run'}"), "hessabs[data]")
    assert not (tmp_path / "run").exists()


def test_workdir_is_required(capsys):
    assert_refused(*run(capsys, "train", *SMALL), "`workdir` is required", "--workdir")


def test_workdir_under_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    result = run(capsys, "train", *SMALL, f"--workdir={tmp_path / 'file' / 'run'}")
    assert_refused(*result, "`workdir` must be a folder", f"{tmp_path / 'file'} is a file")


@pytest.mark.slow
def test_workdir_that_cannot_be_written(capsys, tmp_path, monkeypatch):
    if os.access("/proc/self", os.W_OK):  # who may write everything may not write there
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = run(capsys, "train", *SMALL, "--workdir=/proc/self/run")
    assert_refused(*result, "`workdir` /proc/self/run cannot be used", "name another folder")
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, mode: True)  # as when it became so later
    result = run(capsys, "train", *SMALL, "--workdir=/proc/self/run")
    assert_refused(*result, "`workdir` /proc/self/run cannot be used", "; name another place")


def test_workdir_that_is_a_file(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert_refused(*run(capsys, "train", *SMALL, f"--workdir={tmp_path / 'file'}"), "must be a folder", "file")


def test_unknown_command(capsys):
    assert_refused(*run(capsys, "tarin", "--epochs=1"), "'tarin'", "train")


def test_no_command_shows_the_usage(capsys):
    status, out, err = run(capsys)
    assert status == 2
    assert "train" in out + err


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_lists_the_commands(capsys, flag):
    status, out, err = run(capsys, flag)
    assert (status, err) == (0, "")
    assert "hessabs COMMAND" in out
    assert "train" in out


def test_train_help_lists_every_setting_with_its_default(capsys):
    status, out, err = run(capsys, "train", "--help")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    for name, field in declared(*SETTINGS).items():
        [at] = [i for i, line in enumerate(lines) if line.startswith(f"  --{name}=")]
        assert field.help in lines[at + 1]
        default = field.default
        if isinstance(default, tuple):
            assert f"(default: {','.join(map(str, default))})" in lines[at + 1]
        elif default is not None:
            typed = str(default).lower() if isinstance(default, bool) else str(default)
            assert f"(default: {typed})" in lines[at + 1]
        elif name != "task":
            assert "default: " in lines[at + 1]  # None: the text says what is chosen
    for name in ("workdir", "overwrite"):
        assert any(line.startswith(f"  --{name}=") for line in lines)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cli") / "a" / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        import contextlib
        import io

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(["train", *SMALL, "--patience=1", f"--workdir={workdir}"])
    return status, out.getvalue(), err.getvalue(), workdir


def test_a_run_prints_a_table_and_writes_its_files(trained):
    status, out, err, workdir = trained
    assert status == 0
    lines = err.splitlines()  # no terminal, no bar, but a line for each epoch
    assert [line.split(", loss")[0] for line in lines] == ["50%: epoch 1/2", "100%: epoch 2/2"]
    for record, line in zip(records(workdir), lines, strict=True):
        assert f"test {record['test_accuracy']:.2f}%" in line
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "params",
    }
    summary = json.loads((workdir / "summary.json").read_text())
    header, _, row, last = out.splitlines()
    assert "updates" in header
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0] == "absa"
    assert cells[1] == f"{summary['test_accuracy']:.2f}"
    assert cells[3] == str(summary["updates"])
    assert last == f"curves: {workdir / 'curves.png'}"
    # 22 micro-batches of 64 an epoch: 22 updates, then 11 of twice the size.
    assert summary["updates"] == 33
    assert summary["final_batch_size"] == 128
    for name, value in (("epochs", 2), ("batch_size", 64), ("lr", 0.05), ("patience", 1)):
        assert summary[name] == value
    assert summary["lr_decay_epochs"] == [1]
    # Two epochs of a small network are compilation for the most part, and nothing is counted twice.
    parts = [sum(v for k, v in record.items() if k.startswith("seconds_")) for record in records(workdir)]
    compiled = sum(record["seconds_compile"] for record in records(workdir))
    assert 0 < compiled <= summary["seconds_compile"] < summary["seconds"]
    assert sum(parts) < summary["seconds"]
    assert all(v > 0 for record in records(workdir) for k, v in record.items() if k.startswith("seconds_step"))
    assert cells[-1] == f"{summary['seconds_compile']:.1f}"


def test_a_run_is_not_lost_unless_told(trained, capsys):
    _, _, _, workdir = trained
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    result = run(capsys, "train", *SMALL, f"--workdir={workdir}")
    assert_refused(*result, "already holds a run", "--overwrite")
    bad = run(capsys, "train", "--lr=-1", "--overwrite", f"--workdir={workdir}")
    assert_refused(*bad, "got -1.0")
    assert {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_overwrite_and_nan(trained, capsys, monkeypatch):
    # A loss that becomes NaN after the first epoch: what was written stays, and nothing of the older run.
    _, _, _, workdir = trained
    old = (workdir / "metrics.jsonl").read_text()
    make = run_lib.jit_functions

    def breaking(*args, **kwargs):
        functions, count = make(*args, **kwargs), []

        def whole(*arguments):
            state = functions.whole(*arguments)
            count.append(1)
            bad = len(count) == 30
            return state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params)) if bad else state

        return functions._replace(whole=whole)

    monkeypatch.setattr(run_lib, "jit_functions", breaking)
    own = ("max_batch", "patience")
    flags = [flag for flag in SMALL if not any(name in flag for name in own)]
    flags += ["--method=bl", "--seed=1", "--overwrite"]
    status, out, err = run(capsys, "train", *flags, f"--workdir={workdir}")
    _, error = err.splitlines()  # behind the line of the first epoch
    assert_refused(status, out, error + "\n", "not finite at update 31 (epoch 2", "lower the learning rate")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0] not in old
    assert sorted(os.listdir(workdir)) == ["config.json", "diverged.json", "metrics.jsonl"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["evaluate", "--workdir=w", "--batch_size=0"], "`batch_size` must be at least 1, got 0"),
        (["predict", "--workdir=w", "i.png", "--resize=0"], "`resize` must be at least 1, got 0"),
        (["advise", "--dataset=digits", "--minutes=0"], "`minutes` must be positive and finite, got 0.0"),
        (["plan", "--num_examples=0"], "`num_examples` must be at least 1, got 0"),
        (["spectrum", "--workdir=w", "--batch_size=0"], "`batch_size` must be at least 1, got 0"),
    ],
)
def test_a_number_out_of_its_range_is_named_by_its_flag_before_anything_is_done(capsys, argv, said):
    assert_refused(*run(capsys, *argv), said)


def test_version(capsys):
    assert run(capsys, "--version") == (0, f"hessabs {hessabs.__version__}\n", "")


@pytest.mark.parametrize("place", ["assemble", "fit", "summary_table"])
def test_ctrl_c_is_one_line_and_130(capfd, tmp_path, monkeypatch, place):
    # While the data is read, while the training has not begun, and when it is over.
    def interrupt(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)

    if place == "summary_table":
        monkeypatch.setattr(train, "fit", lambda *args, **kwargs: mock.Mock(summary={"method": "bl"}))
    monkeypatch.setattr(train, place, interrupt)
    argv = ["hessabs", "train", "--lr_decay_epochs=", f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == 130
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("hessabs: interrupted")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train", "`hessabs train --resume` goes on"),
        ("attack", "kept, and the same command goes on"),
        ("spectrum", "kept, and the same command goes on"),
        ("watch", "what is running goes on"),
        *((name, "the same command begins anew") for name in ("plan", "report", "advise", "predict")),
        *((name, "the same command begins anew") for name in ("evaluate", "data")),
    ],
)
def test_ctrl_c_says_what_is_true_of_the_command(capfd, monkeypatch, command, words):
    module = sys.modules["hessabs.cli.main"]  # of the name `cli.main`, which is the function
    monkeypatch.setattr(module, "config_flags", lambda *settings: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(os, "_exit", sys.exit)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as caught:
            cli.run([command, "--workdir=run"])
    finally:
        signal.signal(signal.SIGINT, before)
    err = capfd.readouterr().err
    assert caught.value.code == 130
    assert words in err
    assert ("--resume" in err) == (command == "train")


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda': no"), AssertionError()])
def test_a_platform_that_is_not_there(capsys, tmp_path, monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(train, "assemble", lambda given: jax.devices())
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    result = run(capsys, "train", f"--workdir={tmp_path / 'run'}")
    assert_refused(*result, "JAX_PLATFORMS=cuda cannot be used", str(error), "Unset it", "jax[cuda]")


@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({"XDG_CACHE_HOME": "cache"}, "cache/hessabs"),
        ({"HOME": "."}, ".cache/hessabs"),
        ({"XDG_CACHE_HOME": "file"}, None),  # a disk that cannot be written to
        ({"XDG_CACHE_HOME": "cache", "JAX_COMPILATION_CACHE_DIR": "own"}, "own"),
        ({"XDG_CACHE_HOME": "cache", "JAX_COMPILATION_CACHE_DIR": ""}, ""),  # none
    ],
)
def test_compiled_programs_are_kept_for_the_next_command(tmp_path, monkeypatch, capsys, variables, kept):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("file").touch()
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(signal, "signal", mock.Mock())
    with pytest.raises(SystemExit):
        cli.run(["--version"])
    got = os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    assert got == (kept if got in ("own", "", None) else str(tmp_path / kept))
    assert pathlib.Path("cache").exists() == (kept == "cache/hessabs")


@pytest.mark.slow
def test_what_a_process_says(tmp_path):
    """Real processes: a reader that has gone, a platform that is not there, Ctrl-C at any time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def start(*argv, **changes):
        command = [sys.executable, "-m", "hessabs", *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env={**environment, "JAX_PLATFORMS": "cpu", **changes}, **pipes)

    with start("train", "--help") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    with start("train", f"--workdir={tmp_path / 'cuda'}", JAX_PLATFORMS="cuda") as process:
        out, err = process.communicate()
    assert_refused(process.returncode, out, err, "JAX_PLATFORMS=cuda cannot be used", "Unset it")
    # The package itself is imported before a line of it can run: while Python reports on imports, it is.
    for seconds in (0.1, 2.0, 5.0):
        flags = ["--epochs=10000", "--lr_decay_epochs=", f"--workdir={tmp_path / str(seconds)}"]
        with start("train", "--method=bl", *flags, PYTHONPROFILEIMPORTTIME="1") as process:
            while "| hessabs.cli.main\n" not in process.stderr.readline():
                pass
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=200)
        assert (process.returncode, out) == (130, "")
        told = [
            line for line in err.splitlines() if not line.startswith("import time:") and "epoch" not in line
        ]
        assert len(told) == 1, err
        assert told[0].startswith("hessabs: ")


@pytest.mark.slow
def test_a_signal_saves_and_says_so_by_the_exit_status(tmp_path):
    flags = [flag for flag in SMALL if "max_batch" not in flag]
    flags += ["--method=bl", "--epochs=10000", "--lr_decay_epochs="]
    signals = (signal.SIGTERM, signal.SIGINT)
    processes = {
        signum: subprocess.Popen(
            [sys.executable, "-m", "hessabs", "train", f"--workdir={tmp_path / signum.name}", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for signum in signals
    }
    for signum, process in processes.items():
        metrics, deadline = tmp_path / signum.name / "metrics.jsonl", time.monotonic() + 200
        while not metrics.exists() or not metrics.read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signum)
    for signum, process in processes.items():
        _, err = process.communicate(timeout=200)
        assert process.returncode == 128 + signum  # 143 and 130
        assert "--resume goes on there" in err
        assert len(list((tmp_path / signum.name / "checkpoints").iterdir())) == 1


def test_without_the_packages_of_training_a_command_says_what_to_install(capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'flax.linen'", name="flax.linen")

    monkeypatch.setattr("importlib.import_module", missing)
    assert cli.main(["report"]) == 2
    want = 'hessabs: flax is not installed, which the commands need: pip install "hessabs[train]"\n'
    assert capsys.readouterr().err == want
