"""What importing the library costs: nothing of its extras."""

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "tensorflow_datasets", "matplotlib", "flax", "sklearn", "tqdm")


def test_brings_in_no_extra():
    code = f"""
import sys, hessabs.cli
print("jax" in sys.modules)
[getattr(hessabs, name) for name in hessabs.__all__]
print([name for name in {HEAVY} if name in sys.modules], "jax" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["False", "[] True", ""]


@pytest.mark.slow
def test_type_checkers_see_the_annotations(tmp_path):
    pytest.importorskip("mypy")
    user = tmp_path / "user.py"
    user.write_text("import hessabs\nreveal_type(hessabs.power_iteration)\nhessabs.hvp(1, 2)\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--follow-imports=silent", str(user)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "PowerIterationResult" in result.stdout  # not Any, and no note of a package without types
    assert "Missing positional argument" in result.stdout or "Too few arguments" in result.stdout
