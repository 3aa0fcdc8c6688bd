"""The spectrum of trained networks: numbers against dense matrices, files, interruptions, and complaints."""

import csv
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hessabs import cli, curvature
from hessabs.data import subset
from hessabs.data.order import sample_places
from hessabs.training import files
from hessabs.training.look import cache, spectrum
from hessabs.training.look.spectrum import Options
from tests.training.look import kinds

pytestmark = pytest.mark.sampled


def dense(run, source, number):
    """The Hessian of the loss of the first examples, as a matrix."""
    flat, unravel = ravel_pytree(run.params)
    batch = jax.tree.map(lambda x: x[:number], kinds.whole(source, run.task))
    key = jax.random.key(0)
    loss = lambda x: run.task.loss(unravel(x), run.model_state, batch, key, False).mean  # noqa: E731
    return flat, loss, jax.jit(jax.hessian(loss))(flat)  # one program, and no eager ones


def table(record, matrix):
    return [row["eigenvalue"] for row in record["eigenvalues"] if row["matrix"] == matrix]


def test_eigenvalues_are_those_of_the_dense_hessian_by_the_weight_of_the_loss(tmp_path):
    # Batches of 23 with different numbers of unmasked tokens: each counts by these.
    run = kinds.tokens()
    options = Options(top=3, batch_size=23, block="last", rtol=1e-4)
    record = spectrum.spectrum(*run[:3], tmp_path, options)
    for name, source in (("training", run.task.train), ("test", run.task.test)):
        _, _, matrix = dense(run, source, len(source))
        want = np.linalg.eigvalsh(matrix)[::-1]
        np.testing.assert_allclose(table(record, name), want[:3], rtol=1e-3)
        rows = kinds.places(run.params, "Dense_0")
        block = np.linalg.eigvalsh(matrix[np.ix_(rows, rows)])[::-1]
        np.testing.assert_allclose(table(record, f"{name}, last layer"), block[:3], rtol=1e-3)


@pytest.mark.slow
def test_a_plain_task_with_everything(tmp_path, monkeypatch):
    run = kinds.plain()
    options = Options(top=2, batch_size=25, per_example=2, density=True, landscape=True, block="w")
    record = spectrum.spectrum(*run[:3], tmp_path, options)
    flat, loss, matrix = dense(run, run.task.train, 50)
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(table(record, "training"), values[::-1][:2], rtol=1e-3)
    top = vectors[:, -1]
    line = [float(loss(flat + t * top)) for t in (-0.5, 0.5)]
    got = record["landscape"]["line"]
    np.testing.assert_allclose(sorted([got[0], got[-1]]), sorted(line), rtol=1e-3)  # either sign of the vector
    assert got[10] == pytest.approx(float(loss(flat)), rel=1e-5)
    assert np.shape(record["landscape"]["plane"]) == (11, 11)
    assert len(record["density"]["nodes"]) == 4
    np.testing.assert_allclose(np.array(record["density"]["nodes"])[:, -1], values[-1], rtol=1e-3)
    stem = spectrum.stem(options)
    for suffix in ("", "_examples", "_density", "_line", "_plane"):
        assert (tmp_path / f"{stem}{suffix}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / f"{stem}.json").read_text()) == json.loads(json.dumps(record))
    with (tmp_path / f"{stem}.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(record["eigenvalues"]) == 2 * (2 + 2 + 2)
    # The same again is found and not computed; other options leave the table alone.
    with monkeypatch.context() as patch:
        patch.setattr(curvature, "eigsh", lambda *args, **kwargs: 1 / 0)
        patch.setattr(curvature, "spectral_density", lambda *args, **kwargs: 1 / 0)
        again = spectrum.spectrum(*run[:3], tmp_path, options._replace(landscape=False))
    assert again["density"] == record["density"]
    spectrum.spectrum(*run[:3], tmp_path, Options(top=1, batch_size=25))
    assert len(list(tmp_path.glob("spectrum-*.json"))) == 3


@pytest.mark.slow
def test_images_and_what_was_tracked(tmp_path):
    run = kinds.images()
    line = {"epoch": 1, "eigenvalue": 3.0, "last_layer_eigenvalue": 1.0, "gradient_norm": 0.5}
    files.write_lines(tmp_path / files.METRICS, [line])
    options = Options(top=2, block="last", num_examples=100, batch_size=40)
    record = spectrum.spectrum(*run[:3], tmp_path, options)
    want = np.linalg.eigvalsh(dense(run, subset(run.task.train, sample_places(100, 300)), 100)[2])[::-1]
    np.testing.assert_allclose(table(record, "training"), want[:2], rtol=2e-3)
    assert table(record, "training, last layer")[0] < want[0]
    assert (tmp_path / "tracked.png").read_bytes().startswith(b"\x89PNG")


VALUES = jnp.linspace(-1.0, 2.0, 300) ** 3


def solve(folder, name="matrix", identity="a", k=2, interrupt=None, save_seconds=0.0):
    calls = []

    def matvec(vector):
        calls.append(1)
        if len(calls) == interrupt:
            raise KeyboardInterrupt
        return VALUES * vector

    options = SimpleNamespace(rtol=1e-6, max_matvecs=80, save_seconds=save_seconds)
    return spectrum.solve(cache.Kept(folder, identity), name, matvec, jnp.ones(300), k, options)


@pytest.fixture
def interrupted(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        solve(tmp_path, interrupt=18)
    (path,) = tmp_path.iterdir()
    return path


def test_an_interruption_does_not_show(interrupted, capsys):
    want = curvature.eigsh(lambda v: VALUES * v, jnp.ones(300), 2, max_matvecs=80, rtol=1e-6)
    got = solve(interrupted.parent)
    assert "matrix: going on after 17 products." in capsys.readouterr().err
    assert got.num_matvecs == want.num_matvecs > 17
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not interrupted.exists()


@pytest.mark.parametrize("other", [{"identity": "b"}, {"name": "another"}, {"k": 3}], ids=str)
def test_the_state_of_something_else_is_not_taken_up(interrupted, capsys, other):
    solve(interrupted.parent, **other)
    assert "going on" not in capsys.readouterr().err
    assert not interrupted.exists()  # one state at a time is kept


@pytest.mark.parametrize("damage", ["cut off", "other shape"])
def test_a_broken_state_is_left_aside(interrupted, capsys, damage):
    if damage == "cut off":
        interrupted.write_bytes(interrupted.read_bytes()[:5000])
    else:
        with np.load(interrupted) as saved:
            fields = {**saved, "basis": np.zeros((3, 7), np.float32)}
        np.savez(interrupted, **fields)
    result = solve(interrupted.parent)
    error = capsys.readouterr().err
    assert "is left aside" in error
    assert "going on" not in error
    np.testing.assert_allclose(result.eigenvalues, np.sort(VALUES)[::-1][:2], rtol=1e-3)


@pytest.mark.slow
def test_a_landscape_and_a_density_go_on_at_the_next_point(tmp_path, monkeypatch):
    run = kinds.plain()
    options = Options(top=2, batch_size=50, density=True, landscape=True)
    (tmp_path / "whole").mkdir()
    want = spectrum.spectrum(*run[:3], tmp_path / "whole", options)
    keep, kept = cache.Kept.keep, []

    def dying(self, name, values):
        keep(self, name, values)
        kept.append(name)
        if kept.count("line") == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache.Kept, "keep", dying)
    with pytest.raises(KeyboardInterrupt):
        spectrum.spectrum(*run[:3], tmp_path, options)
    del kept[:]
    monkeypatch.setattr(cache.Kept, "keep", lambda *args: (kept.append(args[1]), keep(*args)))
    got = spectrum.spectrum(*run[:3], tmp_path, options)
    assert got == want
    assert kept == ["line"] * 16 + ["plane"] * 121


def command(monkeypatch, run, *flags):
    monkeypatch.setattr("hessabs.training.look.where.open_run", lambda where: run)
    return cli.main(["spectrum", *flags])


def test_the_command(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, kinds.plain(), f"--workdir={tmp_path}", "--top=1", "--batch_size=50") == 0
    out = capsys.readouterr().out
    assert "training" in out
    assert out.splitlines()[-1].startswith(f"spectrum: {tmp_path}/spectrum-")
    assert (
        command(monkeypatch, kinds.plain(), f"--workdir={tmp_path}", "--top=1", "--batch_size=50", "--ema") == 0
    )
    assert len(list(tmp_path.glob("spectrum-*.json"))) == 2  # that of the average leaves the other alone
    (tmp_path / "outside").symlink_to(tmp_path.parent)
    assert command(monkeypatch, kinds.plain(), f"--workdir={tmp_path}") == 2
    assert "must hold no links" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--save_seconds=-1"], "`save_seconds` must be at least 0, got -1.0"),
        (["--top=0"], "`top` must be at least 1, got 0"),
        (["--block=last"], "its number of outputs (`num_classes`) is not there. Its layers are root"),
        (["--block=first"], "`where` chooses none of the leaves: got 'first', there are b, w"),
        (["--max_matvecs=5"], "`max_matvecs` must be at least `top`=20, got 5"),
        (["--per_example=-1"], "`per_example` must be at least 0, got -1"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, monkeypatch, capsys, flags, message):
    assert command(monkeypatch, kinds.plain(), f"--workdir={tmp_path}", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_needs_a_run(capsys):
    assert cli.main(["spectrum"]) == 2
    assert "`workdir` is required" in capsys.readouterr().err
