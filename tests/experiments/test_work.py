"""The queue: each run once, whoever works on it, and the ones that diverge too."""

import json
import subprocess
import sys

import pytest

from experiments import report, work
from experiments.grid import Grid
from hessabs.training import Config
from hessabs.training.metrics import read_lines
from hessabs.training.saving.session import Session

CONFIG = Config(dataset="digits", method="bl", epochs=1, batch_size=128, pgd_steps=2, validation_examples=200)
SOURCE = {"command": "test", "commit": "c" * 40, "hardware": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A grid with two runs: one that went well, one that diverged."""
    root = tmp_path_factory.mktemp("grid")
    assert work.do(root / "bl_128/seed0", CONFIG, SOURCE, None) is not None
    diverging = CONFIG._replace(lr=1e12, epochs=3)
    assert work.do(root / "wild/seed0", diverging, SOURCE, None) is not None
    return root


def test_a_run_leaves_a_whole_summary(folder):
    summary = work.finished(folder / "bl_128/seed0")
    assert {**summary, **SOURCE} == summary
    assert "data_dir" not in summary
    assert 0 < summary["pgd_accuracy"] <= summary["test_accuracy"]
    assert summary["pgd_accuracy"] <= summary["fgsm_accuracy"] + 0.5  # the stronger attack
    assert 0 < summary["validation_pgd_accuracy"] <= summary["validation_accuracy"]
    assert (summary["test_accuracy"] * 3.6) % 1 == pytest.approx(0, abs=1e-6)  # of 360 images
    assert (summary["validation_accuracy"] * 2) % 1 == 0  # of 200
    assert summary["samples"] == (1437 - 200) // 128 * 128
    assert summary["seconds_cpu"] > 0
    assert len(read_lines(folder / "bl_128/seed0/metrics.jsonl")) == 1


def test_a_diverged_run_is_recorded_and_has_the_accuracy_of_chance(folder):
    summary = work.finished(folder / "wild/seed0")
    assert "not finite" in summary["diverged"]
    assert summary["test_accuracy"] == summary["fgsm_accuracy"] == summary["pgd_accuracy"] == 10.0
    assert work.line("wild", summary).startswith("wild: diverged; The ")


@pytest.mark.parametrize("name", ["bl_128/seed0", "wild/seed0"])
def test_a_finished_run_is_not_done_again(folder, name):
    before = (folder / name / "summary.json").stat().st_mtime_ns
    assert work.do(folder / name, CONFIG, SOURCE, None) is None
    assert (folder / name / "summary.json").stat().st_mtime_ns == before


def test_a_run_of_another_process_is_left_to_it(tmp_path):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(''); input()"
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-u", "-c", hold, str(folder / work.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert work.do(folder, CONFIG, SOURCE, None) is None
        other.kill()
        other.wait()
    with work.locked(folder) as mine:  # a process that dies gives its lock back
        assert mine


def test_a_run_that_was_cut_off_by_another_commit_starts_anew(folder, tmp_path):
    # It has written its metrics, and a summary that does not say where it comes from.
    cut = tmp_path / "bl_128/seed0"
    cut.mkdir(parents=True)
    (cut / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    (cut / "summary.json").write_text('{"test_accuracy": 1.0}')
    (cut / work.STARTED).write_text(json.dumps({**SOURCE, "commit": "d" * 40}))
    summary = work.do(cut, CONFIG, SOURCE, None)
    assert summary["test_accuracy"] == work.finished(folder / "bl_128/seed0")["test_accuracy"]
    assert len(read_lines(cut / "metrics.jsonl")) == 1


def test_a_run_that_was_cut_off_goes_on_to_the_same_end(tmp_path):
    config = CONFIG._replace(epochs=3, pgd_steps=0)
    whole = work.do(tmp_path / "whole", config, SOURCE, None)
    cut = tmp_path / "cut"

    class CutOff(Exception):
        pass

    def break_off(record):
        if record["epoch"] == 2:
            raise CutOff

    with pytest.MonkeyPatch.context() as patch:
        append = Session.append
        patch.setattr(Session, "append", lambda self, record: (append(self, record), break_off(record)))
        patch.setattr(work, "CHECKPOINT_EVERY", "1epochs")
        with pytest.raises(CutOff):
            work.do(cut, config, SOURCE, None)
    assert work.finished(cut) is None
    resumed = work.do(cut, config, SOURCE, None)
    for name in ("updates", "samples", "test_accuracy", "fgsm_accuracy", "eigenvalue"):
        assert resumed[name] == whole[name], name
    assert [line["epoch"] for line in read_lines(cut / "metrics.jsonl")] == [1, 2, 3]
    assert "seconds_cpu" in whole
    assert "seconds_cpu" not in resumed  # that of the first process is not known
    assert sorted(p.name for p in cut.iterdir()) == [
        "curves.png",
        "metrics.jsonl",
        "params",
        "run.lock",
        "summary.json",
    ]


def test_runs_of_another_commit_move_aside(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"a/seed{seed}").mkdir(parents=True)
        (tmp_path / f"a/seed{seed}/summary.json").write_text(json.dumps({"commit": "d" * 40}))
        work.move_aside(tmp_path, f"a/seed{seed}", "d" * 40)
    assert sorted(p.name for p in tmp_path.glob("a@dddddddd/*")) == ["seed0", "seed1"]
    assert work.finished(tmp_path / "a/seed0") is None


def test_report(folder):
    grid = Grid("mine", "Mine.", dict.fromkeys(("wild/seed0", "bl_128/seed0", "bl_128/seed1"), CONFIG))
    (folder / report.FINDINGS).write_text("What it means.\n")
    text = report.write(folder, grid)
    assert "\n\nWhat it means.\n\n" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["run", "---", "wild", "bl_128"]  # as in the config
    assert "| 0 (1 diverged) | " in rows[2]
    assert "| 10.00 | 10.00 | 10.00 |" in rows[2]
    assert "1 of the 3 runs of the grid are missing." in text
    assert " seconds | CPU seconds |" not in rows[0]  # of several runs at a time the clock says nothing
    assert text == (folder / "README.md").read_text()
    runs = (folder / "runs.csv").read_text().splitlines()
    assert runs[0].startswith("label,seed,commit,diverged,validation_accuracy,")
    assert len(runs) == 3
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_runs_that_had_the_machine_alone(folder):
    grid = Grid("mine", "Mine.", {"bl_128/seed0": CONFIG}, alone=True)
    text = report.write(folder, grid)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    titles = [title.strip() for title in rows[0].split("|")]
    seconds = [row.split("|")[titles.index("seconds")].strip() for row in rows[1:]]
    summaries = [json.loads(path.read_text()) for path in folder.glob("*/seed*/summary.json")]
    assert sorted(seconds) == sorted(f"{summary['seconds']:.1f}" for summary in summaries)


def test_report_without_a_finished_run(tmp_path):
    assert "holds no finished run" in report.write(tmp_path, Grid("mine", "Mine.", {}))
