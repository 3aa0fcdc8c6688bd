"""A process that is killed at any time: the next one goes on to the same numbers."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.training.look import kill_driver


@pytest.mark.slow
@pytest.mark.parametrize(("command", "seen"), [("spectrum", "krylov-*.npz"), ("attack", "pgd-*.npz")])
def test_what_was_killed_goes_on_to_the_same_numbers(tmp_path, capsys, command, seen):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    want = kill_driver.look(command, whole)
    arguments = [sys.executable, "-m", "tests.training.look.kill_driver", command, str(killed)]
    root = pathlib.Path(__file__).parents[3]
    with subprocess.Popen(arguments, cwd=root, stderr=subprocess.DEVNULL) as process:
        while not list((killed / "cache").glob(seen)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (killed / "cache").glob("*-*.npz")}
    assert not list(killed.glob(f"{command}*.json"))
    capsys.readouterr()
    got = kill_driver.look(command, killed)
    if command == "spectrum":
        assert "going on after" in capsys.readouterr().err
        assert got == want
        assert not list((killed / "cache").glob(seen))
        return
    assert len(kept) < 3 * 10  # clean, fgsm and pgd on 10 chunks
    after = {path: path.stat().st_mtime_ns for path in (killed / "cache").glob("*-*.npz")}
    assert len(after) == 3 * 10
    assert kept.items() <= after.items()
    times = {"seconds_per_image": 0, "seconds_compile": 0}
    assert [{**row, **times} for row in got["rows"]] == [{**row, **times} for row in want["rows"]]
