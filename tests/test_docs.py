"""The site: every public name has its place, every link and entry leads somewhere, and the tutorials run."""

import ast
import contextlib
import doctest
import functools
import importlib
import io
import os
import re
import tomllib
from pathlib import Path

import pytest

from hessabs import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
per_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
PACKAGES = (
    "hessabs",
    "hessabs.curvature",
    "hessabs.attacks",
    "hessabs.attacks.losses",
    "hessabs.batch_size",
    "hessabs.plots",
    "hessabs.transforms",
    "hessabs.data",
    "hessabs.models",
    "hessabs.training",
    "hessabs.training.tasks",
    "hessabs.training.objectives",
    "hessabs.training.callbacks",
)
WITH_A_PAGE = {*PACKAGES, "hessabs.typing"}
QUICK = {"write-your-own.md"}
_FENCE = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)


def code(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return "\n".join(block for block in blocks if ">>>" in block)


def cases():
    for page in PAGES:
        if page.parent != DOCS and code(page):  # test_readme.py runs those at the top
            marks = () if page.name in QUICK else pytest.mark.slow
            yield pytest.param(page, id=page.name, marks=marks)


@pytest.mark.slow
@pytest.mark.parametrize("page", list(cases()))
def test_python_blocks_run(page):
    # One session, as a reader has it: a later block may use the names of an earlier one.
    test = doctest.DocTestParser().get_doctest(code(page), {}, page.name, str(page), 0)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))


def test_every_tutorial_has_code_that_runs_or_commands():
    pages = [page for page in PAGES if page.parent.name == "tutorials"]
    assert len(pages) >= 7
    assert {page.name for page in pages if not code(page)} == {"command-line.md"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_a_page(package):
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    placed = re.findall(rf"^::: {re.escape(package)}\.(\w+)$", pages, re.MULTILINE)
    names = importlib.import_module(package).__all__
    both = [[n for n in some if f"{package}.{n}" not in WITH_A_PAGE] for some in (placed, names)]
    assert sorted(both[0]) == sorted(both[1])  # each once, and none that is not there


def test_no_package_was_forgotten():
    known = {*PACKAGES, "hessabs.cli"}
    for path in (ROOT / "hessabs").rglob("__init__.py"):
        name = ".".join(path.parent.relative_to(ROOT).parts)
        assigned = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign)]
        exports = any(getattr(target, "id", "") == "__all__" for node in assigned for target in node.targets)
        assert not exports or name in known, name


@per_page
def test_links_lead_somewhere(page):
    text = _FENCE.sub("", page.read_text())
    for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)\s]*))?\)", text):
        there = page if not target else Path(os.path.normpath(page.parent / target))
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ +(.*)$", there.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_every_entry_of_the_site_is_there_and_every_page_has_one():
    _, nav = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")
    entries = re.findall(r"([\w./-]+\.md)$", nav, re.MULTILINE)
    assert len(entries) == len(set(entries)) > 30
    missing = [entry for entry in entries if not ((DOCS / entry).is_file() or (ROOT / entry).is_file())]
    assert missing == []
    assert {str(page.relative_to(DOCS)) for page in PAGES} <= set(entries)


def test_every_extra_has_its_row():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "about/versions.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(extras)
    everything = " ".join(extras["all"])
    assert all(name in everything for name in ("train", "data", "prepare"))


@per_page
def test_lines_are_short(page):
    # Rows of tables cannot be broken.
    lines = [line for line in _FENCE.sub("", page.read_text()).splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > 120] == []


@per_page
def test_names_and_files_are_there(page):
    text = page.read_text()
    for name in re.findall(r"`(hessabs(?:\.\w+)+)", text):
        module, *rest = name.split(".")
        found = importlib.import_module(module)
        for part in rest:
            found = getattr(found, part, None) or importlib.import_module(f"{found.__name__}.{part}")
    files = re.findall(r"(?<![\w/.])(?:hessabs|experiments|examples|tests)/[\w./-]*[\w/]", text)
    assert [name for name in files if not (ROOT / name).exists()] == []


@functools.cache
def flags(command):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert cli.main([command, "--help"]) == 0
    return set(re.findall(r"^ *--(?:\[no\])?(\w+)", out.getvalue(), re.MULTILINE)) | {"help"}


@per_page
def test_flags_of_commands_are_there(page):
    text = page.read_text()
    shown = [
        *re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE),
        *re.findall(r"`([^`\n]+)`", text),
    ]
    for line in "\n".join(shown).splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["hessabs"] and len(words) > 1 and words[1].islower():
            used = {flag for word in words for flag in re.findall(r"^--(\w+)", word)}
            assert used <= flags(words[1]), line
