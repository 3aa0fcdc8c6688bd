"""Several processes train as one does with as many devices."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from hessabs.training.joining import STATUS, join
from hessabs.training.processes import agree

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
    "train",
    "--dataset=digits",
    "--batch_size=32",
    "--micro_batch_size=16",
    "--max_batch_size=256",
    "--epochs=4",
    "--lr=0.02",
    "--patience=1",
    "--epsilon=0.05",
    "--hessian_batch_size=64",
    "--lr_decay_epochs=3",
)


NORMED = """
import flax.linen as nn


class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(32)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


def make(num_classes):
    return Net(num_classes)
"""


def start(workdir, devices, *flags):
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "hessabs", *FLAGS, f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_several(workdir, processes, devices, *flags):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", *flags)
    return [start(workdir, devices, *shared, f"--process_id={i}") for i in range(processes)]


def end(processes, timeout=300):
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def results(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return summary, records


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    file = tmp_path_factory.mktemp("network") / "net.py"
    file.write_text(NORMED)
    return f"--model={file}:make", "--lr=0.002"  # batch norm amplifies rounding: small steps


@pytest.fixture(scope="module")
def alone(network, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    codes, outputs = end([start(workdir, 4, "--devices=4", *network)])
    assert codes == [0], outputs
    return results(workdir)


def check_same_course(got, want):
    for record, expected in zip(got, want, strict=True):
        for field in ("samples", "batch_size", "lr", "adversarial_fraction"):
            assert record[field] == expected[field]
        assert record["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-5)


@pytest.mark.slow
def test_several_processes_are_one(network, alone, tmp_path):
    # A single micro-batch is split over all devices while the batch is small; later each device has its own.
    # (Four processes of a device each go on with a run of two in ``test_process_resume.py``.)
    codes, outputs = end(start_several(tmp_path, 2, 2, *network))
    assert codes == [0, 0], outputs
    (summary, records), (want, want_records) = results(tmp_path), alone
    assert want["final_batch_size"] == 256
    assert want_records[-1]["train_loss"] < want_records[0]["train_loss"] - 0.1  # it learns
    for field in ("updates", "final_batch_size"):
        assert summary[field] == want[field]
    for field in ("test_accuracy", "fgsm_accuracy"):
        assert summary[field] == pytest.approx(want[field], abs=1 / 360)  # at most one image
    assert summary["eigenvalue"] == pytest.approx(want["eigenvalue"], rel=1e-4)
    check_same_course(records, want_records)
    assert all("curves:" not in output for output in outputs[1:])  # one of them speaks


def wait_in_several(processes, *rest):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.devices.waiting", str(port), str(processes), str(i), "10", *rest],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("dead", [0, 1])  # of process 0 the others hear at once, of others by their heartbeat
def test_a_process_that_is_lost_outside_a_collective_is_named_in_one_line(dead):
    several = wait_in_several(2)
    try:
        started = [[process.stdout.readline() for _ in range(3)] for process in several]
        assert started == [["joined\n", "Python's own\n", "from C\n"]] * 2
        several[dead].kill()
        output, _ = several[1 - dead].communicate(timeout=60)
    finally:
        for process in several:
            process.kill()
            process.communicate()
    assert several[1 - dead].returncode == STATUS
    assert output == (
        f"hessabs: process {dead} of this run has died or cannot be reached; start all of them again with "
        "--resume.\n"
    )


@pytest.mark.slow
def test_an_abort_for_another_reason_stays_one():
    (process,) = wait_in_several(1, "abort")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGABRT
    assert "from C\n" in output
    assert "died" not in output


@pytest.mark.slow
def test_each_process_reads_its_rows_of_a_set_on_disk(tmp_path):
    # With batch norm: at first a micro-batch is split over the processes, later each has its own.
    pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
    pytest.importorskip("grain", reason="the extra `data` is not installed")
    from tests.data.test_from_disk import write_imagenet

    write_imagenet(tmp_path, 70)
    flags = [
        *("--dataset=imagenet2012", f"--data_dir={tmp_path}", "--image_size=16", "--model=c1_small"),
        *("--augment=resized_crop", "--batch_size=4", "--micro_batch_size=4", "--max_batch_size=16"),
        *("--epochs=3", "--lr_decay_epochs=", "--lr=0.0002", "--hessian_batch_size=8"),
    ]
    codes, outputs = end(start_several(tmp_path / "several", 2, 1, *flags))
    assert codes == [0, 0], outputs
    codes, outputs = end([start(tmp_path / "one", 2, "--devices=2", *flags)])
    assert codes == [0], outputs
    (summary, records), (want, want_records) = results(tmp_path / "several"), results(tmp_path / "one")
    assert summary["final_batch_size"] == want["final_batch_size"] == 16
    check_same_course(records, want_records)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "`coordinator` is required"),
        (("localhost:1", 2, None), "`process_id` are required with coordinator, got 2 and None"),
        (("localhost:1", 2, 2), r"`process_id` must lie in \[0, num_processes=2\), got 2"),
    ],
)
def test_bad_processes(arguments, message):
    with pytest.raises(ValueError, match=message):
        join(*arguments)


def test_one_process_agrees_with_itself():
    agree("nothing", np.zeros(3))
