"""Killed at any moment and resumed, a run ends with the bits of one that nothing interrupted."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from tests.training.runs import lines

ROOT = pathlib.Path(__file__).parents[3]
KILLED = {"status": -signal.SIGKILL, "bits": ""}
ABSA = {"method": "absa"}


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Ask a driver to train: ``ask(workdir, settings, kill=None, twice=False) -> {"status", "bits"}``."""
    cache = tmp_path_factory.mktemp("cache")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore:os.fork:RuntimeWarning",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, str(ROOT / "tests" / "training" / "saving" / "kill_driver.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as driver:

        def ask(workdir, settings, kill=None, twice=False):
            request = {"workdir": str(workdir), "settings": settings, "kill": kill, "twice": twice}
            driver.stdin.write(json.dumps(request) + "\n")
            driver.stdin.flush()
            return json.loads(driver.stdout.readline())

        yield ask
        driver.stdin.close()


@pytest.fixture(scope="module")
def whole(ask, tmp_path_factory):
    """The run that nothing interrupts: (its answer, its folder)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    answer = ask(workdir, ABSA)
    assert answer["status"] == 0
    return answer, workdir


@pytest.mark.slow
def test_a_kill_in_an_update(ask, tmp_path):
    settings = {"method": "bl", "epochs": 1, "lr_decay_epochs": []}
    assert ask(tmp_path / "killed", settings, ["micro_batch", 16, 0], twice=True) == KILLED
    assert not (tmp_path / "killed" / "summary.json").exists()
    killed = ask(tmp_path / "killed", settings, twice=True)
    assert killed == {"status": 0, "bits": killed["whole"], "whole": killed["whole"]}
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


@pytest.mark.slow
def test_random_moments(ask, whole, tmp_path):
    draw = random.Random(0)
    for _ in range(6):
        moment = ["micro_batch", draw.randint(4, 8), draw.choice([0, 0.03]) * draw.random()]
        assert ask(tmp_path / "killed", ABSA, moment) == KILLED
    assert ask(tmp_path / "killed", ABSA) == whole[0]
    assert lines(tmp_path / "killed") == lines(whole[1])
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {path.name for path in whole[1].iterdir()}


@pytest.mark.slow
def test_chosen_moments(ask, whole, tmp_path):
    sizes = [line["batch_size"] for line in lines(whole[1])]
    assert len(set(sizes)) > 2
    assert any(line["eigenvalue"] for line in lines(whole[1]))
    for point, count in [
        ("micro_batch", 2),  # the first update is half accumulated, and nothing is saved yet
        ("write", 2),
        ("write", 3),  # the record of the second checkpoint is there, its arrays are not, or the other way
        ("update", 3),  # all of its gradients are there
        ("measure", 2),  # its second product
        ("growth", 1),
        ("micro_batch", 3),  # in an update of four or more
        ("line", 1),
        ("line", 1),
        ("params", 1),
        ("summary", 1),
    ]:
        assert ask(tmp_path / "killed", ABSA, [point, count, 0]) == KILLED, point
    assert ask(tmp_path / "killed", ABSA) == whole[0]
    assert lines(tmp_path / "killed") == lines(whole[1])
