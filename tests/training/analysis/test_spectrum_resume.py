"""A spectrum that is killed goes on to the same bits; files of another run, or broken ones, are left aside."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hessabs import cli, curvature
from hessabs.training.analysis.spectrum_state import SpectrumState, fingerprint

VALUES = jnp.linspace(-1.0, 2.0, 300) ** 3
FLAGS = ["--top=3", "--num_examples=60", "--batch_size=5", "--rtol=1e-6", "--max_matvecs=60", "--block=last"]


def _matvec(vector):
    return VALUES * vector


def _solve(state, name="matrix", k=2, max_matvecs=80, **options):
    return state.eigsh(name, _matvec, jnp.ones(300), k, max_matvecs=max_matvecs, rtol=1e-6, **options)


def _interrupt(folder, signature="a", after=17):
    """Save a state after some products, as a process does that is killed then."""
    calls = []

    def matvec(vector):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return VALUES * vector

    with pytest.raises(KeyboardInterrupt):
        SpectrumState(folder, signature, 0.0).eigsh(
            "matrix", matvec, jnp.ones(300), 2, max_matvecs=80, rtol=1e-6
        )
    return folder / "spectrum_state.npz"


def test_slices_and_interruptions_do_not_show(tmp_path, capsys):
    want = curvature.eigsh(_matvec, jnp.ones(300), 2, max_matvecs=80, rtol=1e-6)
    assert _interrupt(tmp_path).exists()
    got = _solve(SpectrumState(tmp_path, "a", 0.0))
    assert "matrix, 2 pairs: going on after 17 products." in capsys.readouterr().err
    assert got.num_matvecs == want.num_matvecs > 17
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "spectrum_state.npz").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "it cannot be read"),
        (lambda path: path.write_bytes(b"no archive"), "it cannot be read"),
        (lambda path: np.savez(path, name=np.array([object()])), "it cannot be read"),
        (lambda path: _resave(path, basis=np.zeros((3, 7), np.float32)), r"its basis has shape (3, 7)"),
    ],
    ids=["cut off", "other file", "pickle", "other shape"],
)
def test_broken_states_are_left_aside(tmp_path, capsys, change, message):
    change(_interrupt(tmp_path))
    result = _solve(SpectrumState(tmp_path, "a", 30.0))
    error = capsys.readouterr().err
    assert "is left aside" in error
    assert message in error
    assert "going on" not in error
    np.testing.assert_allclose(result.eigenvalues, np.sort(VALUES)[::-1][:2], rtol=1e-3)


def _resave(path, **changes):
    with np.load(path) as saved:
        fields = {**saved, **changes}
    np.savez(path, **fields)


@pytest.mark.parametrize("other", ["signature", "name", "k"])
def test_states_of_something_else_are_left_aside(tmp_path, capsys, other):
    _interrupt(tmp_path)
    state = SpectrumState(tmp_path, "b" if other == "signature" else "a", 30.0)
    _solve(state, name="another" if other == "name" else "matrix", k=3 if other == "k" else 2)
    assert "is left aside" in capsys.readouterr().err


def test_results_are_kept_by_fingerprint(tmp_path, capsys):
    SpectrumState(tmp_path, "a", 30.0).keep("training", [1.5])
    assert SpectrumState(tmp_path, "a", 30.0).done == {"training": [1.5]}
    assert SpectrumState(tmp_path, "b", 30.0).done == {}
    assert "spectrum_state.json is left aside" in capsys.readouterr().err
    sets = {"training": [{"label": np.arange(3)}]}
    prints = {
        fingerprint(params, data, options)
        for params in (jnp.ones(2), jnp.zeros(2))
        for data in (sets, {"training": [{"label": np.arange(1, 4)}]})
        for options in ({"top": 1}, {"top": 2})
    }
    assert len(prints) == 8


def test_killed_command_goes_on_to_the_same_numbers(tmp_path, capsys):
    run = tmp_path / "run"
    train = ["--dataset=digits", "--method=bl", "--epochs=1", "--lr_decay_epochs=", f"--workdir={run}"]
    assert cli.main(["train", *train]) == 0
    flags = [f"--workdir={run}", *FLAGS]
    assert cli.main(["spectrum", *flags]) == 0
    want = json.loads((run / "spectrum.json").read_text())["eigenvalues"]
    (run / "spectrum.json").unlink()
    state = run / "spectrum_state.npz"
    command = [sys.executable, "-m", "hessabs.cli", "spectrum", *flags, "--save_seconds=0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not state.exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (run / "spectrum.json").exists()
    assert state.exists()
    capsys.readouterr()
    assert cli.main(["spectrum", *flags]) == 0
    assert "going on after" in capsys.readouterr().err
    assert json.loads((run / "spectrum.json").read_text())["eigenvalues"] == want
    assert not state.exists()
