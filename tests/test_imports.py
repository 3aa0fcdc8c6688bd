"""What importing the library costs: nothing of its extras."""

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "tensorflow_datasets", "matplotlib", "flax", "sklearn", "tqdm")


@pytest.mark.parametrize("statement", ["import hessabs", "import hessabs.cli"])
def test_brings_in_no_extra(statement):
    code = f"{statement}; import sys; print([m for m in {HEAVY} if m in sys.modules], 'hessabs' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] True"
