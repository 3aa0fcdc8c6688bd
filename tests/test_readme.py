"""The library use in README.md runs as it stands there."""

import doctest
import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


def blocks():
    found = re.findall(r"^```(?:python|pycon)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    return [block for block in found if ">>>" in block]


def test_python_blocks_run():
    assert blocks(), "README.md shows no use of the library"
    # One session, as a reader has it: a later block may use the names of an earlier one.
    test = doctest.DocTestParser().get_doctest("\n".join(blocks()), {}, "README.md", str(README), 0)
    assert len(test.examples) >= 5
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=report.append)
    if runner.failures:
        pytest.fail("".join(report))


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_names_the_two_commands(command):
    assert command in README.read_text()
