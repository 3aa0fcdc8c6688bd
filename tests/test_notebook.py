"""The Colab notebook runs from top to bottom on several (virtual) devices."""

import ast
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

NOTEBOOK = pathlib.Path(__file__).parents[1] / "examples" / "colab_tpu.ipynb"


def code():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    first, *rest = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert first.startswith("%pip install")
    return "\n".join(rest)


def test_what_the_notebook_imports_is_there():
    names = 0
    for node in ast.walk(ast.parse(code())):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hessabs":
            module = importlib.import_module(node.module)
            names += sum(
                hasattr(module, alias.name) or bool(importlib.import_module(f"{node.module}.{alias.name}"))
                for alias in node.names
            )
    assert names >= 4


@pytest.mark.slow
def test_notebook_runs_on_four_devices(tmp_path):
    script = tmp_path / "notebook.py"
    script.write_text(code() + "\nassert jax.device_count() == 4\n")
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(NOTEBOOK.parents[1]),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "one device:" in done.stdout
