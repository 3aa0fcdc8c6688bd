"""The queue: each run once, whoever works on it, and the ones that diverge or are cut off too."""

import json
import subprocess
import sys
import time

import pytest

from experiments import grid, measure, report, table, training, work
from experiments.grid import Grid

SETTINGS = {
    "dataset": "digits",
    "method": "bl",
    "epochs": 1,
    "batch_size": 128,
    "pgd_steps": 2,
    "validation_examples": 200,
}
SOURCE = {"command": "test", "commit": "c" * 40, "hardware": "none"}


def place(folder):
    return work.Place(folder / "results", folder / "runs")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A grid with two runs: one that went well, one that diverged."""
    here = place(tmp_path_factory.mktemp("grid"))
    assert work.do(here, "bl_128/seed0", SETTINGS, SOURCE) is not None
    assert work.do(here, "wild/seed0", {**SETTINGS, "lr": 1e12, "epochs": 3}, SOURCE) is not None
    return here


@pytest.fixture
def train(monkeypatch):
    """Training that only says how it was called; it is cut off where the settings say so."""
    calls = []

    def train_one(settings, workdir, *, data_dir=None, resume=False):
        calls.append((settings, workdir, data_dir, resume))
        if settings.get("cut_off"):
            raise KeyboardInterrupt
        return {**settings, "seed": 0, "updates": 7}, [{"epoch": 1}]

    monkeypatch.setattr(training, "train_one", train_one)
    return calls


@pytest.mark.slow
def test_a_run_leaves_a_whole_line_and_its_params(trained):
    run = table.read(trained.results)["bl_128/seed0"]
    summary = run.summary
    assert {**summary, **SOURCE, **SETTINGS} == summary
    assert "data_dir" not in summary
    assert 0 < summary["pgd_accuracy"] <= summary["test_accuracy"]
    assert summary["pgd_accuracy"] <= summary["fgsm_accuracy"] + 0.5  # the stronger attack
    assert 0 < summary["validation_pgd_accuracy"] <= summary["validation_accuracy"]
    assert (summary["test_accuracy"] * 3.6) % 1 == pytest.approx(0, abs=1e-6)  # of 360 images
    assert (summary["validation_accuracy"] * 2) % 1 == 0  # of 200
    assert summary["samples"] == (1437 - 200) // 128 * 128
    assert summary["seconds_cpu"] > 0
    assert [record["updates"] for record in run.records] == [summary["updates"]]
    assert (trained.workdirs / run.name / "params").is_dir()
    assert not (trained.workdirs / run.name / work.STARTED).exists()
    assert [path.name for path in trained.results.iterdir()] == [table.FILE]  # nothing else is committed
    assert work.line(run).startswith(f"bl_128/seed0: {summary['test_accuracy']:.2f} % right, ")


@pytest.mark.slow
def test_a_diverged_run_is_recorded_and_has_the_accuracy_of_chance(trained):
    run = table.read(trained.results)["wild/seed0"]
    assert "not finite" in run.summary["diverged"]
    assert run.summary["test_accuracy"] == run.summary["fgsm_accuracy"] == run.summary["pgd_accuracy"] == 10.0
    assert work.line(run).startswith("wild/seed0: diverged; The ")


def test_a_finished_run_is_not_done_again(train, tmp_path):
    here = place(tmp_path)
    run = work.do(here, "a/seed0", {"lr": 0.1}, SOURCE, "DIR")
    assert train == [({"lr": 0.1}, here.workdirs / "a/seed0", "DIR", False)]
    assert run.summary.pop("seconds_cpu") >= 0
    assert run.summary == {"lr": 0.1, "seed": 0, "updates": 7, **SOURCE}
    assert work.do(here, "a/seed0", {"lr": 0.1}, SOURCE) is None
    assert len(train) == 1


def test_a_run_of_another_process_is_left_to_it(train, tmp_path):
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(''); input()"
    here = place(tmp_path)
    workdir = here.workdirs / "a/seed0"
    workdir.mkdir(parents=True)
    command = [sys.executable, "-u", "-c", hold, str(workdir / work.LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert work.do(here, "a/seed0", {}, SOURCE) is None
        other.kill()
        other.wait()
    assert train == []
    assert work.do(here, "a/seed0", {}, SOURCE) is not None  # a process that dies gives its lock back


@pytest.mark.parametrize(("commit", "resume"), [("c" * 40, True), ("d" * 40, False)])
def test_a_run_that_was_cut_off_goes_on_if_the_commit_is_the_same(train, tmp_path, commit, resume):
    here = place(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        work.do(here, "a/seed0", {"cut_off": True}, SOURCE)
    assert table.read(here.results) == {}
    run = work.do(here, "a/seed0", {}, {**SOURCE, "commit": commit})
    assert [call[3] for call in train] == [False, resume]
    assert ("seconds_cpu" in run.summary) != resume  # the time of an earlier process is not known
    assert run.commit == commit


def test_runs_of_another_commit_move_aside_with_their_params(train, tmp_path):
    here = place(tmp_path)
    for seed in (0, 1):
        work.do(here, f"a/seed{seed}", {}, {**SOURCE, "commit": "d" * 40})
        (here.workdirs / f"a/seed{seed}/params").mkdir()
        work.move_aside(here, f"a/seed{seed}")
    assert sorted(table.read(here.results)) == ["a@dddddddd/seed0", "a@dddddddd/seed1"]
    assert (here.workdirs / "a@dddddddd/seed1/params").is_dir()
    assert work.do(here, "a/seed0", {}, SOURCE).name == "a/seed0"


@pytest.mark.slow
def test_report(trained, tmp_path):
    results = tmp_path / "results"
    with table.changing(results) as runs:
        runs |= table.read(trained.results)
        run = runs["bl_128/seed0"]  # of one epoch: a curve has two at least
        runs[run.name] = run._replace(records=[*run.records, {**run.records[0], "epoch": 2}])
    grid = Grid("mine", "Mine.", dict.fromkeys(("wild/seed0", "bl_128/seed0", "bl_128/seed1"), SETTINGS))
    (results / report.FINDINGS).write_text("What it means.\n")
    text = report.write(results, grid)
    assert "\n\nWhat it means.\n\n" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows] == ["run", "---", "wild", "bl_128"]  # as in the config
    assert "| 0 (1 diverged) | " in rows[2]
    assert "| 10.00 | 10.00 | 10.00 |" in rows[2]
    assert "1 of the 3 runs of the grid are missing." in text
    assert " seconds | CPU seconds |" not in rows[0]  # of several runs at a time the clock says nothing
    assert text == (results / "README.md").read_text()
    drawn = ["curves.png", "schedules.png"]
    assert sorted(path.name for path in results.glob("*.png")) == drawn
    assert all(f"]({name})" in text for name in drawn)


@pytest.mark.slow
def test_report_of_runs_that_had_the_machine_alone(trained):
    this = Grid("mine", "Mine.", {"bl_128/seed0": SETTINGS}, alone=True)
    runs = table.read(trained.results)
    text = report.describe(trained.results, this, runs, report.group(runs, this), [])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    titles = [title.strip() for title in rows[0].split("|")]
    seconds = [row.split("|")[titles.index("seconds")].strip() for row in rows[1:]]
    assert sorted(seconds) == sorted(f"{run.summary['seconds']:.1f}" for run in runs.values())


def test_report_without_a_finished_run(tmp_path):
    assert "holds no finished run" in report.write(tmp_path, Grid("mine", "Mine.", {}))


@pytest.mark.slow
@pytest.mark.parametrize("what", measure.MEASUREMENTS)
@pytest.mark.slow
def test_measuring_a_trained_run(trained, what, monkeypatch, tmp_path):
    config = tmp_path / "mine.py"
    config.write_text('"""Mine."""\nSEEDS = (0,)\nBASE = {}\nGRID = {"bl_128": {}}\n')
    results = tmp_path / "mine"
    with table.changing(results) as runs:
        runs |= table.read(trained.results)
    flags = ["--workdirs", str(tmp_path / "runs"), "--results", str(tmp_path), "--num_examples", "200"]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mine").symlink_to(trained.workdirs)
    monkeypatch.setattr(sys, "argv", ["measure.py", str(config), "*", "--what", what, *flags])
    measure.main()
    runs = table.read(results)
    assert runs["wild/seed0"].measured == {}  # it diverged
    record = runs["bl_128/seed0"].measured[what]
    network = training.trained(runs["bl_128/seed0"].summary, trained.workdirs / "bl_128/seed0", None)
    (batch,) = training.batches(network.splits["train"], 200, 200)
    (top,) = measure.curvature.eigsh(
        measure.curvature.hessian(network.loss_fn, network.params, batch), network.params, 1, rtol=1e-3
    ).eigenvalues
    if what == "robustness":
        assert next(iter(record["accuracy"])) == "clean"
        assert max(record["accuracy"].values()) == record["accuracy"]["clean"]
        assert len(record["accuracy"]) == 7
        assert record["accuracy"]["pgd"] < record["accuracy"]["clean"]
        assert record["eigenvalues"][0] == pytest.approx(float(top), rel=2e-2)
        assert "## Under each attack" in (results / "README.md").read_text()
        return
    assert record["residual"] < 1e-2
    assert len(record["train"]) == len(record["test"]) == len(record["last_layer"]) == 20
    assert record["train"][0] == pytest.approx(float(top), rel=2e-2)
    assert record["train"][0] >= record["last_layer"][0]  # a block's eigenvalue is never the larger one
    loss = float(network.loss_fn(network.params, batch))
    assert record["line_train"][10] == pytest.approx(loss, rel=1e-5)
    assert min(record["line_train"][0], record["line_train"][20]) > record["line_train"][10]
    assert "Hessian eigenvalues of the trained networks" in (results / "README.md").read_text()


@pytest.mark.slow
def test_a_grid_that_was_killed_goes_on_and_two_processes_share_it(tmp_path):
    config = tmp_path / "mine.py"
    config.write_text(
        '"""Mine."""\nSEEDS = (0, 1)\nBASE = {"dataset": "digits", "epochs": 40, "pgd_steps": 0}\n'
        'GRID = {"bl_128": {"method": "bl"}, "gg_256": {"method": "gg", "max_batch_size": 256}}\n'
    )
    command = [
        sys.executable,
        str(grid.RESULTS.parent / "run.py"),
        str(config),
        f"--results={tmp_path}/results",
    ]
    command.append(f"--workdirs={tmp_path}/runs")
    first = subprocess.Popen(command)
    until = time.monotonic() + 300
    while not table.read(tmp_path / "results/mine") and time.monotonic() < until:
        time.sleep(0.05)
    first.kill()
    first.wait()
    before = table.read(tmp_path / "results/mine")
    assert 1 <= len(before) < 4
    done = subprocess.run([*command, "--jobs=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = table.read(tmp_path / "results/mine")
    assert sorted(after) == ["bl_128/seed0", "bl_128/seed1", "gg_256/seed0", "gg_256/seed1"]
    assert before.items() <= after.items()
    assert [len(run.records) for run in after.values()] == [40] * 4
    assert not list((tmp_path / "runs").glob(f"*/*/*/{work.STARTED}"))
    assert "| gg_256 | 0, 1 |" in (tmp_path / "results/mine/README.md").read_text()
    assert (
        json.loads((tmp_path / "results/mine/runs.jsonl").read_text().splitlines()[0])["shared"]["epochs"] == 40
    )
