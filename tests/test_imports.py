"""What importing the library costs: nothing of its extras."""

import pathlib
import subprocess
import sys
import time

import pytest

HEAVY = (
    *("tensorflow", "tensorflow_datasets", "matplotlib", "flax", "orbax", "sklearn", "scipy", "chex"),
    *("rich", "tqdm", "tensorboardX", "PIL"),
)
OF_ONE_KIND = ("tensorflow", "tensorflow_datasets", "flax.nnx", "equinox", "grain", "PIL")  # of task or data
TRAINING = pathlib.Path(__file__).parents[1] / "hessabs" / "training"
MOST_TIMES_OPTAX = 2.0  # measured: 1.3, with all names; each imports JAX


def test_brings_in_no_extra():
    code = f"""
import sys, hessabs.cli
print("jax" in sys.modules)
[getattr(hessabs, name) for name in hessabs.__all__]
print([name for name in {HEAVY} if name in sys.modules], "jax" in sys.modules)
import hessabs.training
print([name for name in {OF_ONE_KIND} if name in sys.modules], "orbax" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n") == ["False", "[] True", "[] True", ""]


def test_a_run_knows_nothing_of_what_looks_at_it():
    files = [path for path in TRAINING.glob("*.py") if path.name != "__init__.py"]
    assert len(files) > 20
    assert [path.name for path in files if "training.look" in path.read_text()] == []


@pytest.mark.slow
def test_takes_little_longer_than_optax():
    """The shortest of several fresh processes each, in turns: what else the machine does lengthens some."""
    codes = ("import optax", "import hessabs; [getattr(hessabs, name) for name in hessabs.__all__]")
    seconds = {code: [] for code in codes}
    for _ in range(5):
        for code in codes:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[code].append(time.perf_counter() - start)
    optax, ours = map(min, seconds.values())
    assert ours < MOST_TIMES_OPTAX * optax


@pytest.mark.slow
def test_type_checkers_see_the_annotations(tmp_path):
    pytest.importorskip("mypy")
    user = tmp_path / "user.py"
    user.write_text("import hessabs\nreveal_type(hessabs.power_iteration)\nhessabs.hvp(1, 2)\n")
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path), "--follow-imports=silent", str(user)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "PowerIterationResult" in result.stdout  # not Any, and no note of a package without types
    assert "Missing positional argument" in result.stdout or "Too few arguments" in result.stdout
