"""The library use in README.md and in the pages of docs/ runs as it stands there."""

import doctest
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"
PAGES = [README, *sorted(README.parent.glob("docs/*.md"))]


def blocks(page):
    found = re.findall(r"^```(?:python|pycon)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in found if ">>>" in block]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page):
    assert blocks(page), f"{page.name} shows no use of the library"
    # One session, as a reader has it: a later block may use the names of an earlier one.
    test = doctest.DocTestParser().get_doctest("\n".join(blocks(page)), {}, page.name, str(page), 0)
    assert len(test.examples) >= 5
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_names_the_two_commands(command):
    assert command in README.read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    assert all((page.parent / link).exists() for link in links), links
