"""The notebooks run from top to bottom; what one of them shows is what comes out."""

import ast
import base64
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
TPU, SPECTRUM = EXAMPLES / "colab_tpu.ipynb", EXAMPLES / "spectrum_of_your_model.ipynb"


def code_cells(notebook):
    first, *rest = (cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code")
    assert "".join(first["source"]).startswith("%pip install")
    return rest


def code(notebook):
    return "\n".join("".join(cell["source"]) for cell in code_cells(notebook))


def run(notebook, tmp_path, after=""):
    script = tmp_path / "notebook.py"
    script.write_text(code(notebook) + after)
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(EXAMPLES.parent),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_no_others():
    assert sorted(EXAMPLES.glob("*.ipynb")) == [TPU, SPECTRUM]


@pytest.mark.parametrize("notebook", [TPU, SPECTRUM], ids=lambda path: path.stem)
def test_what_the_notebook_imports_is_there(notebook):
    names = 0
    for node in ast.walk(ast.parse(code(notebook))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hessabs":
            module = importlib.import_module(node.module)
            names += sum(
                hasattr(module, alias.name) or bool(importlib.import_module(f"{node.module}.{alias.name}"))
                for alias in node.names
            )
    assert names >= 1


def test_the_spectrum_is_committed_with_one_small_picture():
    cells = code_cells(SPECTRUM)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    (picture,) = (output["data"]["image/png"] for output in outputs if "data" in output)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert SPECTRUM.stat().st_size < 64_000


@pytest.mark.slow
def test_tpu_runs_on_four_devices(tmp_path):
    after = """
assert jax.device_count() == 4
figure.canvas.draw()
labels = [label.get_text() for label in left.get_yticklabels()]
assert labels == [str(2**k) for k in range(5, 5 + len(labels))], labels
assert len(labels) >= 3
"""
    assert "one device:" in run(TPU, tmp_path, after)


@pytest.mark.slow
def test_the_spectrum_says_what_is_committed(tmp_path):
    def numbers(text):
        found = re.findall(r"(loss|eigenvalue|trace|rate of) +([\d.]+)", text)
        return [name for name, _ in found], [float(value) for _, value in found]

    streams = [output for cell in code_cells(SPECTRUM) for output in cell["outputs"] if "text" in output]
    names, shown = numbers("".join("".join(output["text"]) for output in streams))
    assert names == ["loss", *["eigenvalue"] * 5, "trace", "rate of", "eigenvalue"]
    again, values = numbers(run(SPECTRUM, tmp_path))
    assert again == names
    assert values == pytest.approx(shown, rel=0.02)
