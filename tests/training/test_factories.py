"""Factories in files of the user: errors that say where, and workdirs that cannot run code."""

import hashlib
import json
import os
import pathlib
import sys

import pytest

from hessabs.training.factories import call_factory, changed, load_factory, record, trusted

FILE = """\
import helper_of_net


def make(num_classes):
    if num_classes < 2:
        raise KeyError("too few")
    return {"classes": num_classes, "from": helper_of_net.NAME}


def other(num_classes):
    return None


make_nothing = 3
"""


@pytest.fixture
def net(tmp_path):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "helper_of_net.py").write_text("NAME = 'home'\n")
    file = folder / "net.py"
    file.write_text(FILE)
    return file


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def planted(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A file that leaves a trace when it runs, and the trace."""
    trace = folder.parent / "trace"
    folder.mkdir(exist_ok=True)
    file = folder / "planted.py"
    file.write_text(f"open({str(trace)!r}, 'w').close()\ndef make(num_classes): return {{}}\n")
    return file, trace


def recorded_as(path, file: pathlib.Path) -> dict:
    """What somebody else may write into a workdir, its SHA-256 right."""
    return {**record(load_factory(f"{file}:make").origin), "path": str(path)}


def test_a_factory_is_loaded_and_called(net):
    path, modules = list(sys.path), set(sys.modules)
    factory = load_factory(f"{net}:make")
    assert factory.origin.path == str(net)
    assert sys.path == path
    [own] = set(sys.modules) - modules  # its neighbour is not there for others
    assert own.startswith("hessabs_file_net_")
    assert call_factory(factory, dict, "a dict", num_classes=3) == {"classes": 3, "from": "home"}
    assert call_factory(factory, lambda made: "classes" in made, "classes", num_classes=3)


def test_a_class_is_a_factory_too(tmp_path):
    (tmp_path / "net.py").write_text(
        "from __future__ import annotations\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Net:\n    num_classes: int\n"
    )
    factory = load_factory(f"{tmp_path / 'net.py'}:Net")
    assert call_factory(factory, factory.function, "a Net", num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match=r"net.py, line 4: Net\(\) raised TypeError"):
        call_factory(factory, factory.function, "a Net")


def test_files_of_two_folders_have_their_own_neighbours(net, tmp_path):
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "net.py").write_text(FILE)
    (tmp_path / "away" / "helper_of_net.py").write_text("NAME = 'away'\n")
    for folder in ("home", "away"):
        factory = load_factory(f"{tmp_path / folder / 'net.py'}:make")
        assert call_factory(factory, dict, "a dict", num_classes=2)["from"] == folder


def test_what_is_imported_below_the_folder_and_not_from_it_stays(tmp_path):
    site = tmp_path / "venv" / "lib"
    site.mkdir(parents=True)
    (site / "installed_thing.py").write_text("")
    (tmp_path / "net.py").write_text("import sys\nimport installed_thing\ndef make(): return 1\n")
    sys.path.append(str(site))
    try:
        load_factory(f"{tmp_path / 'net.py'}:make")
        assert "installed_thing" in sys.modules
    finally:
        sys.path.remove(str(site))
        sys.modules.pop("installed_thing", None)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("net.py", ("written FILE.py:NAME", "net.py'")),
        ("net.txt:make", ("written FILE.py:NAME",)),
        ("nett.py:make", ("nett.py", "cannot be read: No such file", "'net.py'")),
        ("net.py:maek", ("net.py has no function maek", "nearest", "'make'")),
        ("net.py:zzz", ("it has ['make', 'other']",)),
        ("net.py:make_nothing", ("must be a function, got a int",)),
    ],
)
def test_a_factory_that_is_not_there(net, spec, parts):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_factory(str(net.parent / spec))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("x = 1\n\n1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("def make(:\n  pass\n", 1, "SyntaxError"),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError"),  # raised elsewhere, on the way from this line
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("\nimport no_such_neighbour\n", 2, "ModuleNotFoundError"),
    ],
)
def test_a_file_that_does_not_run(tmp_path, text, line, what):
    path, modules = list(sys.path), set(sys.modules)
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.py, line {line}: {what}.* function make was expected"):
        load_factory(f"{tmp_path / 'bad.py'}:make")
    assert (sys.path, set(sys.modules)) == (path, modules)


def test_a_factory_that_raises_or_returns_something_else(net):
    factory = load_factory(f"{net}:make")
    with pytest.raises(
        ValueError, match=r"net.py, line 6: make\(num_classes=1\) raised KeyError: 'too few'; expected a dict"
    ):
        call_factory(factory, dict, "a dict", num_classes=1)
    with pytest.raises(ValueError, match=r"net.py, line 4: make\(\) raised TypeError: .*; expected a dict"):
        call_factory(factory, dict, "a dict")
    with pytest.raises(ValueError, match=r"line 4: make\(num_classes=2\) returned a dict; expected a list"):
        call_factory(factory, list, "a list", num_classes=2)
    other = load_factory(f"{net}:other")
    with pytest.raises(ValueError, match=r"line 10: other\(num_classes=2\) returned None; expected classes"):
        call_factory(other, lambda made: made is not None, "classes", num_classes=2)


def test_a_recorded_factory_is_used_again(net, workdir):
    recorded = json.loads(json.dumps(record(load_factory(f"{net}:make").origin)))
    factory = trusted(recorded, workdir)
    assert call_factory(factory, dict, "a dict", num_classes=3)["classes"] == 3


def test_a_recorded_factory_that_has_changed(net, workdir):
    recorded = record(load_factory(f"{net}:make").origin)
    net.write_text(FILE + "# and more\n")
    with pytest.raises(ValueError, match=rf"net.py has changed .* give --task={net}:make to use it"):
        trusted(recorded, workdir, "--task")
    line = changed(load_factory(f"{net}:make").origin, recorded, "--task")
    assert line == f"{net} has changed since the run was made with it as `--task`."
    assert "but the run was made with" in changed(load_factory(f"{net}:other").origin, recorded)
    net.unlink()
    with pytest.raises(ValueError, match=r"cannot be read here: give --model=FILE.py:make"):
        trusted(recorded, workdir)


def test_a_file_that_moved_has_not_changed(net, tmp_path):
    recorded = record(load_factory(f"{net}:make").origin)
    assert changed(load_factory(f"{net}:make").origin, recorded) is None
    (tmp_path / "helper_of_net.py").write_text("NAME = ''\n")
    moved = net.rename(tmp_path / "moved.py")
    assert changed(load_factory(f"{moved}:make").origin, recorded) is None


@pytest.mark.parametrize(
    "way", ["plain", "dots", "link_to_file", "link_to_folder", "linked_workdir", "inner_link"]
)
def test_a_planted_file_does_not_run(tmp_path, monkeypatch, way):
    run, away = tmp_path / "run", tmp_path / "away"
    away.mkdir()
    home = away if way == "inner_link" else run / "deep"
    run.mkdir()
    file, trace = planted(home)
    path = file
    workdir = run
    if way == "dots":
        path = away / ".." / "run" / "deep" / "planted.py"
    elif way == "link_to_file":
        path = away / "link.py"
        path.symlink_to(file)
    elif way == "link_to_folder":
        (away / "link").symlink_to(run)
        path = away / "link" / "deep" / "planted.py"
    elif way == "linked_workdir":
        workdir = away / "link"
        workdir.symlink_to(run)
    elif way == "inner_link":  # lies outside, but its name is one in the workdir
        path = run / "planted.py"
        path.symlink_to(file)
    recorded = recorded_as(path, file)
    trace.unlink()
    with pytest.raises(ValueError, match=r"a file in the workdir, which is data .* give --model="):
        trusted(recorded, workdir)
    monkeypatch.chdir(run)
    with pytest.raises(ValueError, match=r"a file in the workdir"):
        trusted(recorded, ".")
    assert not trace.exists()


@pytest.mark.parametrize("package", [True, False])
def test_a_workdir_with_the_name_of_an_import_does_not_run(tmp_path, package):
    workdir = tmp_path / "useful"
    planted(workdir)
    if package:  # Python would take the folder before the file of this name
        (tmp_path / "useful.py").write_text("")
        (workdir / "planted.py").rename(workdir / "__init__.py")
    file = tmp_path / "net.py"
    file.write_text(f"import useful{'' if package else '.planted'}\ndef make(): return 1\n")
    recorded = {"path": str(file), "name": "make", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    meta_path = list(sys.meta_path)
    with pytest.raises(
        ValueError, match=r"net.py, line 1: ImportError: the module useful.* lies in the workdir"
    ):
        trusted(recorded, workdir)
    assert not (tmp_path / "trace").exists()
    assert sys.meta_path == meta_path
    assert call_factory(trusted(recorded, tmp_path / "another"), int, "a number") == 1


@pytest.mark.parametrize(
    "damage",
    [{"path": 3}, {"sha256": None}, {"path": "planted.py"}, {"name": "a.b"}, {"path": "/etc/passwd"}],
    ids=str,
)
def test_a_damaged_record_does_not_run(tmp_path, monkeypatch, workdir, damage):
    file, trace = planted(tmp_path / "away")
    recorded = {**recorded_as(file, file), **damage}
    trace.unlink()
    monkeypatch.chdir(file.parent)  # a relative path would be found
    with pytest.raises(ValueError, match=r"record of `--model` is damaged: give --model=FILE.py:NAME"):
        trusted(recorded, workdir)
    with pytest.raises(ValueError, match="damaged"):
        trusted([1], workdir)
    assert not trace.exists()


def test_a_workdir_that_is_a_link_farm_is_compared_by_what_it_is(tmp_path, workdir):
    # The same folder under another device name or by a bind mount: `samefile` knows, names do not.
    file, trace = planted(workdir)
    recorded = recorded_as(file, file)
    trace.unlink()
    os.link(file, workdir / "second.py")
    with pytest.raises(ValueError, match="a file in the workdir"):
        trusted({**recorded, "path": str(workdir / "second.py")}, workdir)
    assert not trace.exists()
