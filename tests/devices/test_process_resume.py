"""Runs of several processes are saved, ended by signals and kills, and go on, on as many or on others."""

import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from hessabs.training.joining import HEARTBEAT_SECONDS, STATUS
from hessabs.training.trained import load_trained
from tests.devices.test_processes import end, start, start_several
from tests.training.runs import bits, lines

EPOCHS = 14
SAVES = (f"--epochs={EPOCHS}", "--validation_examples=900", "--resume", "--checkpoint_every=8updates")
EXACT = ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction")


def wait_for(workdir, processes, line):
    """Wait until a run has written so many lines."""
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 200
    while not metrics.exists() or len(metrics.read_text().splitlines()) < line:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), end(processes)
        time.sleep(0.05)


def stop(workdir, processes, line, signum=signal.SIGTERM):
    """Send a signal to the last process of a run; all are to save and to leave with the same status."""
    wait_for(workdir, processes, line)
    processes[-1].send_signal(signum)
    codes, outputs = end(processes)
    assert codes == [128 + signum] * len(processes), outputs
    assert all("--resume goes on there" in output for output in outputs)


def params_of(workdir):
    return load_trained(workdir).params


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run of two processes that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    codes, outputs = end(start_several(workdir, 2, 1, *SAVES))
    assert codes == [0, 0], outputs
    sizes = [line["batch_size"] for line in lines(workdir)]
    assert len(set(sizes)) > 2
    return workdir


def assert_close(workdir, whole):
    for got, want in zip(lines(workdir), lines(whole), strict=True):
        assert [got[name] for name in EXACT] == [want[name] for name in EXACT]
        assert got["train_loss"] == pytest.approx(want["train_loss"], rel=1e-4)
    got, want = params_of(workdir), params_of(whole)
    for layer in want:
        for name in want[layer]:
            np.testing.assert_allclose(got[layer][name], want[layer][name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_killed_it_ends_with_the_same_bits(whole, tmp_path):
    processes = start_several(tmp_path, 2, 1, *SAVES)
    wait_for(tmp_path, processes, 3)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    codes, outputs = end(processes, timeout=200)
    assert codes[0] == STATUS
    assert time.monotonic() - killed < 3 * HEARTBEAT_SECONDS
    told = [
        line for line in outputs[0].splitlines() if not re.match(r"\[Gloo\]|\d+%: |hessabs: going on", line)
    ]
    assert len(told) == 1, outputs[0]  # and no stack of C++
    assert "of this run has died or cannot be reached" in told[0]
    assert told[0].endswith("with --resume.")
    assert len(lines(tmp_path)) < EPOCHS
    shutil.copytree(tmp_path, tmp_path / "alone")
    codes, outputs = end(start_several(tmp_path, 2, 1, *SAVES))
    assert codes == [0, 0], outputs
    assert "going on after" in outputs[0]
    assert lines(tmp_path) == lines(whole)
    assert bits(params_of(tmp_path)) == bits(params_of(whole))
    # And on one process.
    codes, outputs = end([start(tmp_path / "alone", 1, *SAVES)])
    assert codes == [0], outputs
    assert_close(tmp_path / "alone", whole)


@pytest.mark.slow
def test_on_other_numbers_of_processes(whole, tmp_path):
    stop(tmp_path, start_several(tmp_path, 2, 2, *SAVES, "--checkpoint_every=10min"), 2)
    stop(tmp_path, [start(tmp_path, 4, *SAVES, "--devices=4")], len(lines(tmp_path)) + 2, signal.SIGINT)
    codes, outputs = end(start_several(tmp_path, 4, 1, *SAVES))
    assert codes == [0] * 4, outputs
    assert_close(tmp_path, whole)


@pytest.mark.slow
def test_what_the_first_process_finds_ends_all(whole):
    before = os.stat(whole / "summary.json").st_mtime_ns
    codes, outputs = end(start_several(whole, 2, 1))
    assert codes == [2, 2]
    assert all("already holds a run" in output for output in outputs)
    codes, outputs = end(start_several(whole, 2, 1, *SAVES))
    assert codes == [0, 0], outputs
    assert "has finished" in outputs[0]
    assert os.stat(whole / "summary.json").st_mtime_ns == before
