"""A process that is killed at any time: the next one goes on to the same numbers."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("command", "seen"), [("spectrum", "krylov-*.npz"), ("attack", "pgd-*.npz")])
def test_what_was_killed_goes_on_to_the_same_numbers(tmp_path, command, seen):
    def start(folder):
        folder.mkdir(exist_ok=True)
        arguments = [sys.executable, "-m", "tests.training.look.kill_driver", command, str(folder)]
        root = pathlib.Path(__file__).parents[3]
        return subprocess.Popen(arguments, cwd=root, stderr=subprocess.PIPE, text=True)

    def finish(folder):
        with start(folder) as process:
            _, error = process.communicate()
        assert process.returncode == 0, error
        (path,) = folder.glob(f"{command}*.json")
        return json.loads(path.read_text()), error

    def kept():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "cache").glob("*-*.npz")}

    want, _ = finish(tmp_path / "whole")
    with start(tmp_path / "killed") as process:
        while not list((tmp_path / "killed" / "cache").glob(seen)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = kept()
    assert not list((tmp_path / "killed").glob(f"{command}*.json"))
    got, error = finish(tmp_path / "killed")
    if command == "spectrum":
        assert "going on after" in error
        assert got == want
        assert not list((tmp_path / "killed" / "cache").glob(seen))
        return
    assert len(before) < len(kept()) == 3 * 10  # clean, fgsm and pgd on 10 chunks
    assert before.items() <= kept().items()
    times = {"seconds_per_image": 0, "seconds_compile": 0}
    assert [{**row, **times} for row in got["rows"]] == [{**row, **times} for row in want["rows"]]
