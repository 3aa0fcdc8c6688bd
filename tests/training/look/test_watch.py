"""`hessabs watch`: runs in the terminal, from what their folders say."""

import io
import json
import pathlib
import re
import subprocess
import sys

import pytest
from rich.console import Console

from hessabs import cli
from hessabs.training import files
from hessabs.training.look import watch as module
from hessabs.training.look.watch import curve, look, watch

HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
os.write(file, b"process 7 on here\\n")
print(flush=True)
sys.stdin.readline()
"""


def record(epoch, **fields):
    known = {"updates": 1000 * epoch, "samples": 32000 * epoch, "batch_size": 2 ** (4 + epoch), "lr": 0.1}
    known |= {"test_accuracy": 80.0 + epoch, "test_loss": 1 / epoch, "eigenvalue": 10.0 / epoch}
    return {"epoch": epoch, **known, "residual": 0.01, "seconds_step": 5.0, "seconds_eval": 1.0, **fields}


def write(folder, records=4, epochs=4, *, finished=True, end="\n", **fields):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"config": {"epochs": epochs}}))
    lines = [json.dumps(record(epoch, **fields)) for epoch in range(1, records + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + end)
    if finished:
        (folder / "summary.json").write_text(json.dumps({"epochs": epochs, "seconds": 3700.0}))
    return folder


@pytest.fixture
def running(tmp_path):
    """A run in the hands of another process, which ends with its input."""
    folder = write(tmp_path / "running", 2, 10, finished=False)
    command = [sys.executable, "-S", "-c", HOLDER, str(folder / files.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        yield folder, process
        process.stdin.close()


def shown(*folders, **console):
    file = io.StringIO()
    watch(folders, console=Console(**{"file": file, "width": 100, **console}))
    return file.getvalue()


def test_finished_run(tmp_path):
    text = shown(write(tmp_path / "a"))
    assert f"{tmp_path / 'a'}: finished\n" in text
    assert "epoch 4/4: 4,000 updates, 128,000 examples, 1:01:40" in text
    rows = {line.split("  ")[0]: line.split()[-3:] for line in text.splitlines()}
    assert rows["test accuracy (%)"] == ["81", "84", "84"]
    assert rows["batch size"] == ["32", "256", "256"]
    assert rows["top Hessian eigenvalue"] == ["2.5", "10", "2.5"]
    assert "last record: test_loss 0.25, residual 0.01\n" in text


def test_curves_of_batches_are_logarithmic_and_of_accuracies_linear(tmp_path):
    text = shown(write(tmp_path / "a", 8, 8))
    (batches,) = (line for line in text.splitlines() if line.startswith("batch size"))
    assert "".join(dict.fromkeys(batches.split()[2])) == "▁▂▃▄▅▆▇█"
    assert curve([1, 3, 2], 1, 3, height=3).split("\n") == [" █ ", " █▅", "▁██"]
    assert curve([5.0], 5.0, 5.0) == "▁"


def test_more_epochs_than_columns(tmp_path):
    text = shown(write(tmp_path / "a", 500, 500, batch_size=2))
    (line,) = (line for line in text.splitlines() if line.startswith("learning rate"))
    assert 10 < line.count("▁") < 50


def test_text_goes_by_its_loss(tmp_path):
    folder = write(tmp_path / "a", test_token_accuracy=50.0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["test_accuracy"]
    files.write_lines(folder / "metrics.jsonl", lines)
    text = shown(folder)
    assert "test loss (nats)" in text
    assert "test_token_accuracy 50" in text
    # beside a run with an accuracy, too
    table = shown(folder, write(tmp_path / "b"))
    assert "test loss (nats)" in table
    assert "accuracy" not in table


def test_running_run_is_followed_to_its_end(running, monkeypatch):
    folder, process = running
    seen = look(folder)
    assert (seen.state, seen.note) == ("running", "process 7 on here")

    def end(seconds):
        files.append_line(folder / "metrics.jsonl", record(3))
        process.communicate("\n")

    monkeypatch.setattr(module.time, "sleep", end)
    text = shown(folder, force_terminal=True, color_system=None, width=250)
    assert "running (process 7 on here)" in text
    assert "epoch 2/10: 2,000 updates, 64,000 examples, 0:00:12, about 0:00:48 left" in text
    assert "stopped (before its end: `hessabs train --resume` with the same flags goes on)" in text
    assert "epoch 3/10" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_ctrl_c_gives_the_terminal_back(running, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    assert cli.main(["watch", f"--workdir={running[0]}"]) == 130
    captured = capsys.readouterr()
    assert "\x1b[?25h" in captured.out
    assert captured.err == "hessabs: no longer watching; what is running goes on.\n"


def test_running_run_without_an_epoch_and_without_terminal_or_once(running, capsys, monkeypatch):
    folder, _ = running
    for name in ("config.json", "metrics.jsonl"):
        (folder / name).unlink()
    assert cli.main(["watch", f"--workdir={folder}"]) == 0
    assert "epoch 0/?: 0 updates" in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["watch", f"--workdir={folder}", "--once"]) == 0


def test_looking_disturbs_no_run(tmp_path, running):
    """A lock that a kill left is no run; it can be taken while others look, and is kept when they have."""
    folder = write(tmp_path / "killed", 1, 4, finished=False)
    (folder / files.LOCK).write_text("process 3 on here\n")
    assert look(folder).state == "stopped"
    with files.lock_workdir(folder):
        pass
    look(running[0])
    with pytest.raises(BlockingIOError, match="process 7"), files.lock_workdir(running[0]):
        pass


def test_a_last_line_that_is_not_whole_is_left_out(tmp_path):
    assert len(look(write(tmp_path / "a", 3, end='\n{"epoch": 4, "test_ac')).records) == 3


def test_runs_beside_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a")
    write(tmp_path / "b", 8, 8, test_accuracy=50.0)
    (tmp_path / "b/summary.json").write_text('{"epochs": 8, "diverged": "loss NaN"}')
    files.append_line(tmp_path / "b/metrics.jsonl", record(9, test_accuracy=50.0, eigenvalue=None))
    assert cli.main(["watch", "--workdir=a", "--compare=a,b"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert lines[1][1:] == ["finished", "4/4", "4,000", "256", "0.1", "2.5", "84", "84", "1:01:40"]
    assert lines[3][1:] == ["diverged", "9/8", "9,000", "8,192", "0.1", "1.25", "50", "50", "0:00:54"]
    assert "50 to 84, epochs 1 to 9" in text
    # on one scale: the lower run stays in the lowest line, and the shorter one takes 4 of 9 epochs
    *_, a1, a2, b1, b2 = (line[len("test accuracy (%)  ") :].rstrip() for line in text.splitlines())
    assert (a2, b1, b2) == ("█" * 16, "", "▁" * 36)
    assert "▁" not in a1
    assert len(a1) == 16


def assert_whole(text, width, words):
    """Nothing is cut: no dots, no line that is too long, and every number and word in one line of its own."""
    assert "…" not in text
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    found = re.split(r"[\s▁▂▃▄▅▆▇█━╸╺,:()%]+", text.replace("%", " "))
    assert {word for word in words if word not in found} == set()
    number = re.compile(r"[\d.,:/eE+-]*\d[\d.,:/eE+-]*")
    assert not [word for word in text.split() if word[0] in ".,:/" and number.fullmatch(word)]


WIDTHS = [40, 60, 80, 100, 120]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_number_or_word_is_cut_in_runs_beside_each_other(tmp_path, monkeypatch, width):
    monkeypatch.chdir(tmp_path)
    for name in ("absa", "bl"):
        fields = {"test_accuracy": 98.61, "lr": 0.000123, "eigenvalue": 12.3456}
        write(pathlib.Path("runs", name), 105, 3000, updates=1234567, batch_size=16384, **fields)
    text = shown(pathlib.Path("runs/absa"), pathlib.Path("runs/bl"), width=width)
    words = ["runs/absa", "runs/bl", "finished", "105/3000", "98.61", "accuracy", "epochs"]
    words += ["16", "384", "1", "234", "567", "updates", "batch"] * (width >= 60)
    words += ["0.000123", "lr"] * (width >= 80) + ["12.35", "eigenvalue", "best", "time"] * (width >= 100)
    assert_whole(text, width, words)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("state", ["finished", "running"])
def test_no_number_or_word_is_cut_in_one_run(tmp_path, monkeypatch, width, state):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        module.files, "lock_owner", lambda _: "process 7 on here" if state == "running" else None
    )
    fields = {"test_accuracy": 98.61, "lr": 0.000123, "eigenvalue": 12.3456}
    write(pathlib.Path("runs/absa"), 105, 3000, finished=state == "finished", batch_size=16384, **fields)
    text = shown(pathlib.Path("runs/absa"), width=width)
    words = [
        "runs/absa",
        state,
        "105/3000",
        "105",
        "000",
        "updates",
        "98.61",
        "0.000123",
        "12.35",
        "eigenvalue",
    ]
    assert_whole(text, width, words)
    (columns,) = {len(re.findall("[▁▂▃▄▅▆▇█]", line)) for line in text.splitlines()} - {0}  # none is folded
    assert columns >= 10


@pytest.mark.parametrize("width", WIDTHS)
def test_a_chart_is_no_wider_than_its_column(tmp_path, width):
    levels = [80.0, 85.0, 90.0, 95.0]
    folder = write(tmp_path / "a", 0, 40)
    records = [record(epoch, test_accuracy=levels[(epoch - 1) // 10], batch_size=16) for epoch in range(1, 41)]
    files.write_lines(folder / "metrics.jsonl", records)
    lines = [line for line in shown(folder, width=width).splitlines() if re.search("[▁▂▃▄▅▆▇█]", line)]
    counts = [len(re.findall("[▁▂▃▄▅▆▇█]", line)) for line in lines[:4]]
    assert counts == sorted(counts)  # a staircase of four lines
    assert len(set(counts)) == 4


def test_a_name_that_is_a_long_path_takes_several_lines_and_leaves_the_numbers_whole(tmp_path):
    folder = write(tmp_path / ("x" * 70))
    text = shown(folder, folder, width=60)
    assert "finished" in text
    assert re.search(r"\b84\b", text)
    assert "…" not in text
    assert text.count("x") == 4 * 70  # in both tables


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "metrics.jsonl").write_text('{"epoch"\n{}\n'), "Line 1 of .* is damaged: remove it to"),
        (lambda f: (f / "metrics.jsonl").write_text("3\n"), "Line 1 of .* is damaged: remove it to"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged: remove it"),
        (lambda f: (f / "summary.json").write_text("[]"), "summary.json is damaged: remove it"),
        (lambda f: [path.unlink() for path in f.iterdir()], "holds no run: name the folder"),
        (lambda f: f.rename(f.with_name("b")), "is no folder: name that of a run"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, damage, said, capsys):
    damage(write(tmp_path / "a"))
    assert cli.main(["watch", f"--workdir={tmp_path / 'a'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error)


def test_what_a_folder_says_does_not_steer_the_terminal(tmp_path):
    folder = write(tmp_path / "a", **{"[red]x\x1b[2J": 1})
    (folder / "summary.json").write_text(json.dumps({"diverged": "\x1b[2J [bold]"}))
    text = shown(folder)
    assert "\x1b" not in text
    assert "[bold]" in text
    assert "[red]x" in text


@pytest.mark.slow
def test_no_device_is_started(tmp_path):
    folder = write(tmp_path / "a")
    code = f"""
from hessabs import cli
assert cli.main(["watch", "--workdir={folder}"]) == 0
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_finished_run_that_went_on_and_was_killed_has_stopped(tmp_path):
    folder = write(tmp_path / "a", 4, 4)
    (folder / "config.json").write_text(json.dumps({"config": {"epochs": 6}}))
    seen = look(folder)
    assert (seen.state, seen.epochs, seen.seconds) == ("stopped", 6, 4 * 6.0)


def test_numbers_that_are_not_positive_are_shown(tmp_path):
    folder = write(tmp_path / "a", lr=0.1)
    last = record(5, lr=0.0, eigenvalue=-7.5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(last) + "\n")
    rows = {line.split("  ")[0]: line.split()[-3:] for line in shown(folder).splitlines()}
    assert rows["learning rate"] == ["0", "0.1", "0"]
    assert rows["top Hessian eigenvalue"] == ["-7.5", "10", "-7.5"]
