"""Files of a run: lines that are on disk at once, JSON that any reader takes, folders that are not lost."""

import json
import math

import pytest

from hessabs.training.files import (
    CURVES,
    METRICS,
    SUMMARY,
    append_line,
    check_workdir,
    read_lines,
    say,
    start_workdir,
    write_json,
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_null(tmp_path, value):
    record = {"a": value, "deep": {"b": [1.5, value], "c": (value,)}, "text": "nan"}
    append_line(tmp_path / METRICS, record)
    write_json(tmp_path / SUMMARY, record)
    want = {"a": None, "deep": {"b": [1.5, None], "c": [None]}, "text": "nan"}
    assert json.loads((tmp_path / METRICS).read_text(), parse_constant=pytest.fail) == want
    assert json.loads((tmp_path / SUMMARY).read_text(), parse_constant=pytest.fail) == want


def test_what_is_said_is_one_line_that_steers_no_terminal(capsys):
    say("classes: a\x1b[31mred\u202e,\n b")
    assert capsys.readouterr().err == "hessabs: classes: a[31mred, b\n"


def test_lines_are_appended_in_order(tmp_path):
    records = [{"epoch": i, "loss": i / 3} for i in range(3)]
    for i, record in enumerate(records):
        append_line(tmp_path / METRICS, record)
        assert read_lines(tmp_path / METRICS) == records[: i + 1]
    assert (tmp_path / METRICS).read_text().count("\n") == 3


def test_a_summary_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / SUMMARY, {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / SUMMARY, {"a": object()})
    assert json.loads((tmp_path / SUMMARY).read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == [SUMMARY]


@pytest.mark.parametrize("name", [METRICS, SUMMARY])
def test_refuses_a_folder_with_a_run(tmp_path, name):
    (tmp_path / name).write_text("{}\n")
    with pytest.raises(FileExistsError, match=r"already holds a run; name another folder or pass --overwrite"):
        check_workdir(tmp_path, overwrite=False)
    check_workdir(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "{}\n"  # checking loses nothing


@pytest.mark.parametrize("overwrite", [False, True])
def test_refuses_a_file(tmp_path, overwrite):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(NotADirectoryError, match=r"must be a folder, but .*file is a file"):
        check_workdir(path, overwrite=overwrite)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_accepts_a_folder_without_a_run(tmp_path, make):
    make(tmp_path / "new")
    check_workdir(tmp_path / "new", overwrite=False)


def test_start_removes_the_run_and_nothing_else(tmp_path):
    workdir = tmp_path / "a" / "b"
    start_workdir(workdir)
    for name in (METRICS, SUMMARY, CURVES, "spectrum-1a2b.json", "attack-pgd.png", "notes.txt"):
        (workdir / name).write_text("old")
    start_workdir(workdir)
    assert [path.name for path in workdir.iterdir()] == ["notes.txt"]
