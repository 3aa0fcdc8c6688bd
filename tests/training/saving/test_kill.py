"""Killed at any moment and resumed, a run ends with the bits of one that nothing interrupted."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from hessabs.batch_size.methods import METHODS
from tests.training.saving.runs import lines

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[3]
KILLED = {"status": -signal.SIGKILL, "bits": ""}
SETTINGS = {"gns": {"noise_scale": 4.0}, "fixed": {"grow_epochs": [1, 2]}}


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Ask a driver to train: ``ask(workdir, config, kill=None) -> {"status", "bits"}``."""
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

        def ask(workdir, config, kill=None):
            request = {"workdir": str(workdir), "config": config, "kill": kill}
            driver.stdin.write(json.dumps(request) + "\n")
            driver.stdin.flush()
            return json.loads(driver.stdout.readline())

        yield ask
        driver.stdin.close()


def test_ten_random_moments(ask, tmp_path):
    config, draw = {"method": "absa"}, random.Random(0)
    whole = ask(tmp_path / "whole", config)
    assert whole["status"] == 0
    for _ in range(10):
        moment = ["micro_batch", draw.randint(4, 8), draw.choice([0, 0.03]) * draw.random()]
        assert ask(tmp_path / "killed", config, moment) == KILLED
    assert ask(tmp_path / "killed", config) == whole
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_ten_chosen_moments(ask, tmp_path):
    config = {"method": "absa"}
    whole = ask(tmp_path / "whole", config)
    sizes = [line["batch_size"] for line in lines(tmp_path / "whole")]
    assert len(set(sizes)) > 2
    assert any(line["eigenvalue"] for line in lines(tmp_path / "whole"))
    for point, count in [
        ("micro_batch", 2),  # the first update is half accumulated, and nothing is saved yet
        ("write", 2),
        ("write", 3),  # the record of the second checkpoint is there, its arrays are not, or the other way
        ("measure", 2),  # its second product
        ("growth", 1),
        ("micro_batch", 6),  # in an accumulation of four or more
        ("line", 1),
        ("line", 1),
        ("params", 1),
        ("summary", 1),
    ]:
        assert ask(tmp_path / "killed", config, [point, count, 0]) == KILLED, point
    assert ask(tmp_path / "killed", config) == whole
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


@pytest.mark.parametrize("method", [method for method in METHODS if method != "absa"])
def test_each_rule(ask, tmp_path, method):
    config = {"method": method, "epochs": 3, **SETTINGS.get(method, {})}
    if method in ("gns", "norm_test"):
        config["micro_batch_size"] = 8
    whole = ask(tmp_path / "whole", config)
    assert whole["status"] == 0
    assert ask(tmp_path / "killed", config, ["micro_batch", random.Random(method).randint(20, 60), 0]) == KILLED
    assert ask(tmp_path / "killed", config) == whole
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
