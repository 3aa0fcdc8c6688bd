"""The script for an accelerator: it writes as it goes, goes on after a failure, and runs whole on the CPU."""

import json
import sys

import pytest

from experiments import accelerator


def run(monkeypatch, tmp_path, *flags):
    monkeypatch.setattr(sys, "argv", ["accelerator.py", f"--out={tmp_path}", *flags])
    accelerator.main()
    return json.loads((tmp_path / "results.json").read_text())


def test_a_section_that_fails_is_told_and_the_next_begins(monkeypatch, tmp_path):
    def good(bench):
        """What is good."""
        yield {"network": "mlp", "ms": 1234.5}

    def bad(bench):
        """What fails after a row."""
        yield {"network": "mlp"}
        raise RuntimeError("no memory\nand more")

    sections = {"bad": (bad, 0.5), "good": (good, 0.5)}
    monkeypatch.setattr(accelerator, "SECTIONS", sections)
    results = run(monkeypatch, tmp_path, "--seconds=10")
    assert results["bad"]["failed"] == "RuntimeError: no memory"
    assert results["good"]["rows"] == [{"network": "mlp", "ms": 1234.5}]
    text = (tmp_path / "README.md").read_text()
    assert "It failed: RuntimeError: no memory" in text
    assert "| mlp | 1,234 |" in text
    monkeypatch.setattr(accelerator, "SECTIONS", {**sections, "bad": (good, 0.5)})
    results = run(monkeypatch, tmp_path, "--sections=bad")  # measured again, it replaces its own part alone
    assert (results["bad"]["failed"], results["good"]["rows"]) == (None, [{"network": "mlp", "ms": 1234.5}])


def test_time_is_shared_and_a_late_section_gets_what_earlier_ones_left(monkeypatch, tmp_path):
    given = []

    def section(bench):
        """Nothing."""
        given.append(bench.left())
        yield {}

    monkeypatch.setattr(accelerator, "SECTIONS", {"one": (section, 0.25), "two": (section, 0.75)})
    run(monkeypatch, tmp_path, "--seconds=100")
    assert given[0] == pytest.approx(25, abs=2)
    assert given[1] == pytest.approx(100, abs=4)


@pytest.mark.slow
def test_what_is_compiled_ahead_is_in_the_cache(tmp_path):
    accelerator.compile_ahead(["pgd"], ("mlp",), None, str(tmp_path), 60)
    assert list(tmp_path.glob("*-cache"))


@pytest.mark.slow
@pytest.mark.parametrize("section", [name for name in accelerator.SECTIONS if name != "tests"])
def test_every_section_runs_on_the_cpu(monkeypatch, tmp_path, section):
    flags = f"--sections={section}", "--networks=mlp", "--seconds=12"
    found = run(monkeypatch, tmp_path, *flags)[section]
    assert found["failed"] is None
    assert found["rows"]
