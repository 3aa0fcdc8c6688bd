"""The table of runs: what goes in comes out, whoever else writes, and wherever a process dies."""

import json
import subprocess
import sys

import pytest

from experiments import grid, table

COMMITTED = [grid.RESULTS / name for name in grid.names() if (grid.RESULTS / name / table.FILE).exists()]


def run(name, commit="a" * 40, **summary):
    records = [{"epoch": 1, "lr": 0.1, "eigenvalue": 3.0}, {"epoch": 2, "lr": 0.02, "eigenvalue": None}]
    seed = int(name.rpartition("seed")[2])
    return table.Run(name, {"seed": seed, "lr": 0.1, "commit": commit, **summary}, records, {})


def add(results, *runs):
    with table.changing(results) as there:
        there.update({one.name: one for one in runs})


def test_what_goes_in_comes_out(tmp_path):
    first = run("bl_640/seed0", updates=3, test_accuracy=90.125, max_batch_size=None, lr_decay_epochs=[1, 2])
    second = run("bl_640/seed1", updates=3, test_accuracy=90.25, max_batch_size=640, lr_decay_epochs=[1, 2])
    other = run("bl/seed0", commit="b" * 40, diverged="It is not finite.")._replace(records=[])
    measured = first._replace(measured={"curvature": {"train": [3.0, 2.0], "num_examples": 4}})
    add(tmp_path, measured, second, other)
    assert table.read(tmp_path) == {one.name: one for one in (measured, second, other)}
    assert (second.label, second.commit) == ("bl_640", "a" * 40)
    assert table.read(tmp_path / "nothing") == {}


def test_what_the_runs_of_a_commit_share_is_written_once_and_results_with_their_run(tmp_path):
    add(tmp_path, *(run(f"a/seed{seed}", updates=3, hardware="h", method="gg") for seed in (0, 1)))
    add(tmp_path, run("b/seed0", updates=3, hardware="h", method="bl"))  # the method is shared no longer
    lines = [json.loads(line) for line in (tmp_path / table.FILE).read_text().splitlines()]
    assert lines[0] == {"commit": "a" * 40, "shared": {"lr": 0.1, "hardware": "h"}}
    assert [line["run"] for line in lines[1:]] == ["a/seed0", "a/seed1", "b/seed0"]
    assert lines[1]["summary"] == {"seed": 0, "updates": 3, "method": "gg"}
    assert lines[1]["epochs"] == {"epoch": [1, 2], "lr": [0.1, 0.02], "eigenvalue": [3.0, None]}


def test_numbers_keep_the_digits_of_float32_and_stay_json(tmp_path):
    value = 0.20000000298023224  # float32(0.2)
    add(tmp_path, run("a/seed0", updates=1, eigenvalue=value, seconds=12.3456789, loss=float("nan")))
    summary = table.read(tmp_path)["a/seed0"].summary
    assert (summary["eigenvalue"], summary["seconds"], summary["loss"]) == (0.200000003, 12.3457, None)


def test_a_run_replaces_its_line(tmp_path):
    add(tmp_path, run("a/seed0", updates=1), run("a/seed1", updates=1))
    add(tmp_path, run("a/seed0", updates=2))
    assert [one.summary["updates"] for one in table.read(tmp_path).values()] == [2, 1]


def test_a_change_that_fails_changes_nothing(tmp_path, monkeypatch):
    add(tmp_path, run("a/seed0"))
    before = (tmp_path / table.FILE).read_text()
    with pytest.raises(KeyError), table.changing(tmp_path) as runs:
        runs[runs.popitem()[0]]  # which is gone
    assert (tmp_path / table.FILE).read_text() == before
    monkeypatch.setattr(table.os, "fsync", lambda file: 1 / 0)  # as it dies on the way
    with pytest.raises(ZeroDivisionError):
        add(tmp_path, run("b/seed0"))
    monkeypatch.undo()
    assert (tmp_path / table.FILE).read_text() == before
    add(tmp_path, run("b/seed0"))
    assert sorted(table.read(tmp_path)) == ["a/seed0", "b/seed0"]
    assert [path.name for path in tmp_path.iterdir()] == [table.FILE]


@pytest.mark.parametrize(
    "damaged", ["{", '{"run": "a/seed1"}', '{"run": "a/seed1", "commit": "z", "summary": {}}']
)
def test_a_damaged_line_is_named(tmp_path, damaged):
    add(tmp_path, run("a/seed0"))
    with (tmp_path / table.FILE).open("a") as file:
        file.write(damaged + "\n")
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 3 is no run .*; restore it from git"):
        table.read(tmp_path)


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    script = """
import pathlib, sys
from experiments import table
for seed in range(10):
    name = f"{sys.argv[2]}/seed{seed}"
    with table.changing(pathlib.Path(sys.argv[1])) as runs:
        runs[name] = table.Run(name, {"seed": seed, "commit": sys.argv[2]}, [{"epoch": 1}], {})
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    writers = [subprocess.Popen([*command, label], cwd=grid.RESULTS.parents[1]) for label in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert sorted(table.read(tmp_path)) == [f"{label}/seed{seed}" for label in "abc" for seed in range(10)]


@pytest.mark.parametrize("results", COMMITTED, ids=lambda path: path.name)
def test_committed_runs_have_the_settings_of_their_config_and_say_where_they_come_from(results):
    settings = grid.load(grid.find([results.name])).runs
    runs = table.read(results)
    assert len(runs) >= 2
    for name, one in runs.items():
        assert one.summary["command"] == f"python experiments/run.py {results.name}"
        assert (len(one.commit), bool(one.summary["hardware"])) == (40, True)
        assert one.summary["versions"]["jax"]
        assert [record["epoch"] for record in one.records] == list(range(1, one.summary["epochs"] + 1))
        last = one.records[-1]
        for field, of_epoch in (("updates", "updates"), ("final_batch_size", "batch_size")):
            assert one.summary[field] == last[of_epoch]
        said = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.get(name, {}).items()}
        if one.summary["method"] == "bl":  # has one batch, whatever the others grow to
            said.pop("max_batch_size", None)
        assert {k: one.summary.get(k) for k in said} == said, name
