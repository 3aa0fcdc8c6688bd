"""Every transformation on four devices gives what it gives on one, under each way to use them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.transforms.cases import CASES

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow  # a process of its own on four devices


@pytest.fixture(scope="module")
def differences():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.transforms.devices"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("way", ["pmap", "shard_map with vma", "shard_map without vma", "NamedSharding"])
@pytest.mark.parametrize("name", CASES)
def test_it_is_what_one_device_does(differences, name, way):
    got = differences[f"{name}: {way}"]
    assert isinstance(got, float), got
    assert got <= 1e-5


def test_gradient_statistics_across_devices(differences):
    assert differences["gradient statistics: shard_map with vma"] <= 1e-5
