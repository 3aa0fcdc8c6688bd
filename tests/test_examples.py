"""The examples run as a user runs them, and stay short."""

import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name, *flags):
    command = [sys.executable, str(EXAMPLES / name), *flags]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}  # as if installed from here
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_is_short_and_says_what_it_is(path):
    lines = path.read_text().splitlines()
    assert len(lines) < (60 if path.name == "optax_chain.py" else 150)
    assert lines[0].startswith('"""')
    assert any(line.startswith("def main(") for line in lines)
    assert any(f"python examples/{path.name}" in line for line in lines[:10])


def test_demo(tmp_path):
    out = run("demo.py", "--epochs=2", f"--workdir={tmp_path}")
    rows = [line for line in out.splitlines() if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["fixed batch (BL)", "ABSA"]
    assert "times fewer updates" in out
    assert out.splitlines()[-1] == f"picture: {tmp_path / 'curves.png'}"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    for method in ("bl", "absa"):
        assert (tmp_path / method / "summary.json").is_file()


def test_optax_chain():
    lines = run("optax_chain.py").splitlines()
    sizes = [int(line.rsplit(" ", 1)[1]) for line in lines[:-1]]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 128  # it grew to its maximum
    assert float(lines[-1].removeprefix("final loss ")) < 0.6  # 0.69 is guessing


def test_batch_norm():
    *rows, last = run("batch_norm.py").splitlines()
    assert rows[0] == "  8192 examples: now batches of 64, fraction 0.25"
    assert rows[-1] == " 32768 examples: now batches of 256, fraction 0.0"
    clean, robust = (float(part.split()[-1]) for part in last.split(" %")[:2])
    assert clean > 95
    assert robust > 75


@pytest.mark.slow
def test_data_parallel(monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    sizes, _, apart = run("data_parallel.py").splitlines()
    assert sizes == "8 devices: batches 64 to 256"
    assert float(apart.removeprefix("largest difference from one device: ")) < 1e-5


@pytest.mark.slow
def test_cifar10_on_digits(tmp_path):
    out = run("cifar10.py", "--dataset", "digits", "--epochs", "1", f"--workdir={tmp_path / 'run'}")
    assert out.splitlines()[2].startswith("| absa")
    assert (tmp_path / "run" / "curves.png").is_file()
