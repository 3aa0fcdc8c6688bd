"""Several devices give what one gives: attacks and curvature, in each of three ways."""

import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
WAYS = ("NamedSharding", "shard_map", "pmap")
TOLERANCE = 1e-5  # float32, of numbers of order 1


@functools.cache
def here(module, name):
    """What a script of this folder finds, on the four devices of this process."""
    return importlib.import_module(f"tests.devices.{module}").find([name])


@functools.cache
def findings(module, *names, double=False):
    """What a script of this folder finds, in a process of eight devices; in float64 if asked for."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    # On a busy machine the last of eight devices may come late: XLA would end the process after 40 seconds.
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    environment["XLA_FLAGS"] = f"{environment['XLA_FLAGS']} {patience}"
    if double:
        environment["JAX_ENABLE_X64"] = "1"
    command = [sys.executable, "-m", f"tests.devices.{module}", *names]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


# Conjugate gradients on the singular Hessian of a piecewise linear network amplify rounding.
CONDITION = {"l2hess": 30}
REST = ("fgsm", "l2grad", "bim", "apgd", "l2hess", "trust_region", "deepfool")
# Attacks that stop where all examples are done.
EARLY = ("l2hess", "trust_region", "deepfool")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["pgd", *slow(*REST)])
def test_attacks(name, way):
    found = (here("attacks", name) if name == "pgd" else findings("attacks", *REST))[f"{name}: {way}"]
    assert isinstance(found, dict), found
    assert found["difference"] <= TOLERANCE * CONDITION.get(name, 1)
    assert found["moved"] > 0.05
    assert found["same bits"]
    if way != "NamedSharding" or name not in EARLY:
        assert found["collectives"] == []
    else:
        # The compiled loop asks whether all examples are done: under jit, where they lie is not known to it.
        assert found["collectives"] == [["all-reduce", 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgd", *slow("trust_region", "deepfool")])
def test_attacks_outside_of_jit_stop_without_asking_other_devices(name):
    found = here("attacks", name) if name == "pgd" else findings("attacks", *REST)
    found = found[f"{name}: outside of jit"]
    assert found["difference"] <= TOLERANCE
    assert found["moved"] > 0.05
    assert found["same bits"]
    assert found["loops"] >= 2  # each call has one
    assert found["collectives"] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["eigenpair", *slow("hvp", "gauss_newton")])
def test_curvature(name, way):
    found = (here("curvature", name) if name == "eigenpair" else findings("curvature"))[f"{name}: {way}"]
    assert found["difference"] <= TOLERANCE
    assert found["size"] > 0.05
    assert found["same bits"]
    # No device sends its examples: what travels is of the size of the params (88) and the logits (128).
    assert sum(elements for _, elements in found["collectives"]) <= 2 * 88 + 128


@pytest.mark.slow
def test_curvature_of_sharded_params():
    found = findings("curvature")
    names = [name for name in found if name.startswith("sharded params")]
    assert len(names) == 7
    for name in names:
        assert found[name]["difference"] <= TOLERANCE
    assert found["product stays sharded"]


@pytest.mark.slow
def test_curvature_of_a_data_set():
    found = findings("curvature")["data set"]
    assert found["difference"] <= TOLERANCE
    assert found["same bits"]
