"""README.md and the pages of docs/ say what is so: their code runs, their commands and files are there."""

import doctest
import functools
import importlib
import pathlib
import re
import shlex

import pytest

from experiments import grid
from hessabs import cli

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, *languages):
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.DOTALL | re.MULTILINE)


def commands(program):
    """List the command lines of a program that README.md shows, in blocks and in the text."""
    text = "\n".join([*blocks(README, "sh"), *re.findall(r"`([^`\n]+)`", README.read_text())])
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return sorted({line for line in lines if line.startswith(f"{program} ")})


@per_page
@pytest.mark.slow
def test_python_blocks_run(page):
    shown = [block for block in blocks(page, "python", "pycon") if ">>>" in block]
    assert shown, f"{page.name} shows no use of the library"
    # One session, as a reader has it: a later block may use the names of an earlier one.
    test = doctest.DocTestParser().get_doctest("\n".join(shown), {}, page.name, str(page), 0)
    assert len(test.examples) >= 5
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))


@per_page
def test_links_and_files_are_there(page):
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", text)]
    files = re.findall(r"\b(?:hessabs|experiments|examples|docs|tests)/[\w./-]*[\w/]", text)
    missing = [str(path) for path in (*links, *(ROOT / name for name in files)) if not path.exists()]
    assert missing == []


@per_page
def test_names_of_the_library_are_there(page):
    for name in re.findall(r"`(hessabs(?:\.\w+)+)", page.read_text()):
        functools.reduce(getattr, name.split(".")[1:], importlib.import_module("hessabs"))


def test_targets_of_make_are_there():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {word for line in commands("make") for word in line.split()[1:] if "=" not in word}
    assert {"demo", "test"} <= named <= set(targets)


def test_scripts_and_configs_are_there():
    named = [line.split()[1:] for line in commands("python")]
    assert named
    for script, *arguments in named:
        assert (ROOT / script).is_file()
        if script == "experiments/run.py":
            grid.find(arguments[:1])


@pytest.mark.parametrize("command", ["train", "spectrum", "attack", "report", "plan", "data", "advise"])
def test_flags_of_the_command_line_are_there(command, capsys):
    lines = [line for line in commands("hessabs") if line.split()[1] == command]
    assert lines
    assert cli.main([command, "--help"]) == 0
    known = set(re.findall(r"^ *--(?:\[no\])?(\w+)", capsys.readouterr().out, re.MULTILINE))
    used = {flag for line in lines for flag in re.findall(r"--(\w+)", line)} - {"help"}
    assert used <= known


def test_flags_in_the_text_are_those_of_some_command(capsys):
    for command in ("train", "spectrum", "attack", "report", "plan", "data", "advise"):
        cli.main([command, "--help"])
    known = set(re.findall(r"^ *--(?:\[no\])?(\w+)", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"(?<![\w-])--(\w+)", README.read_text())) <= {*known, "help"}


def test_the_plan_of_the_readme_has_the_updates_that_it_says(capsys):
    (line,) = [line for line in commands("hessabs") if line.split()[1] == "plan"]
    assert cli.main(shlex.split(line)[1:]) == 0
    assert "16380" in capsys.readouterr().out.replace(",", "")
    assert re.search(re.escape(line) + " +# 16,380 updates", README.read_text())


@pytest.mark.slow
def test_commands_that_need_no_data_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(block for block in blocks(README, "sh") if "hessabs train" in block)
    lines = [line.partition("#")[0].strip() for line in block.splitlines()]
    ran = []
    for line in lines:
        if line.startswith("hessabs") and not {"DIR", "..."} & set(line.split()):
            argv = shlex.split(line)[1:]
            few = {"train": ["--epochs=2"], "attack": ["--num_examples=50"], "spectrum": ["--top=3"]}
            assert cli.main([*argv, *few.get(argv[0], [])]) == 0, line
            ran.append(argv[0])
    assert {"train", "spectrum", "attack", "watch", "report", "plan"} <= set(ran)
