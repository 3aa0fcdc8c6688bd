"""What goes wrong on the way: a full disk, a loss that is not finite, a folder of somebody else's."""

import errno
import json
import os
import pathlib
import pickle
import resource
import shutil
import subprocess
import sys

import numpy as np
import orbax.checkpoint as ocp
import pytest

from hessabs.data import epoch_order, micro_batches
from hessabs.training import loop, metrics, set_up, train
from hessabs.training.saving import checkpoint
from hessabs.training.saving.durability import Durability
from hessabs.training.saving.lock import LOCK, lock_workdir
from hessabs.training.saving.manifest import DamagedError, write_manifest
from hessabs.training.saving.session import Session
from hessabs.training.setup import _HESSIAN_DRAW
from tests.training.saving.runs import CONFIG, MICRO, N, again, bits, lines, small_digits

OFTEN = Durability(checkpoint_every="56samples")
RESUME = OFTEN._replace(resume=True)

# Orbax closes its event loop at the first array that fails, and TensorStore tells it of the others.
MANY_ERRORS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Broken(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def base():
    return set_up(CONFIG._replace(method="bl", epochs=2), small_digits())


def after(count, act, monkeypatch):
    """Do something before a micro-batch."""
    train_on, calls = loop._train_on, 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == count:
            act()
        return train_on(*arguments)

    monkeypatch.setattr(loop, "_train_on", counted)


def break_off(run, count, workdir, durability, monkeypatch):
    """Train and end before a micro-batch."""

    def end():
        raise Broken

    with monkeypatch.context() as patch:
        after(count, end, patch)
        with pytest.raises(Broken):
            train(again(run), workdir, durability)


@pytest.fixture
def broken_off(base, tmp_path, monkeypatch):
    """The folder of a run that ended in the middle."""
    break_off(base, 30, tmp_path / "run", OFTEN, monkeypatch)
    return tmp_path / "run"


def resumed_at(run, workdir):
    """The examples at the checkpoint where a run goes on, and 0 where it starts anew."""
    with Session(again(run), workdir, RESUME) as session:
        return session.begin().state.samples


@MANY_ERRORS
def test_a_full_disk_leaves_the_last_good_checkpoint(base, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with monkeypatch.context() as patch:
            after(20, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)), patch)
            with pytest.raises(OSError, match=r"could not be written.*File too large.*; make room") as caught:
                train(again(base), tmp_path / "run", OFTEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal())
    assert last in (56, 112)  # the one at 112 is being written when the disk is full
    assert f"The last good one is that at {last} examples" in str(caught.value)
    result = train(again(base), tmp_path / "run", RESUME)
    assert bits(result.params) == bits(train(again(base)).params)
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))


@MANY_ERRORS
def test_a_full_disk_at_the_params_and_then_going_on(base, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = checkpoint.save_params

    def save_on_a_full_disk(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        save(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "save_params", save_on_a_full_disk)
            with pytest.raises(
                OSError, match=r"`workdir` .*File too large.*; make room and go on with --resume"
            ):
                train(again(base), tmp_path / "run", OFTEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run" / "summary.json").exists()
    trained = []
    monkeypatch.setattr(loop, "_train_on", lambda *arguments: trained.append(arguments))
    result = train(again(base), tmp_path / "run", RESUME)
    assert trained == []  # all that is left is to write
    monkeypatch.undo()
    assert bits(result.params) == bits(train(again(base)).params)
    assert sorted(os.listdir(tmp_path / "run")) == [
        "checkpoints",
        "curves.png",
        "metrics.jsonl",
        "params",
        "summary.json",
    ]


@pytest.mark.parametrize(
    ("name", "number", "advice"),
    [
        ("append_line", errno.ENOSPC, "; make room and go on with --resume."),
        ("write_json", errno.EROFS, "; name"),
    ],
)
def test_what_the_system_refuses_names_the_flag(base, tmp_path, monkeypatch, name, number, advice):
    write = getattr(metrics, name)

    def refuse(path, *arguments):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(metrics, name, refuse)
        with pytest.raises(
            OSError, match=rf"^`workdir` {tmp_path} cannot be used: {os.strerror(number)}"
        ) as caught:
            train(again(base), tmp_path, OFTEN)
    assert advice in str(caught.value)
    assert getattr(metrics, name) is write
    assert bits(train(again(base), tmp_path, RESUME).params) == bits(train(again(base)).params)


def test_a_lock_that_cannot_be_had_is_not_a_run_in_use(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(OSError, match="No locks available"), lock_workdir(tmp_path):
        pass


# --- A loss that is not finite.


def poisoned(place=-1):
    """Digits as floats, one of which is NaN; it is none of those that the eigenvalue is measured on."""
    digits = small_digits()
    image = digits.train["image"].astype(np.float32) / 255
    image[epoch_order(CONFIG.seed, _HESSIAN_DRAW, N)[place]] = np.nan
    test = {**digits.test, "image": digits.test["image"].astype(np.float32) / 255}
    return digits._replace(train={**digits.train, "image": image}, test=test)


@pytest.fixture(scope="module")
def bad():
    return set_up(CONFIG._replace(method="bl", epochs=3), poisoned())


REWIND = OFTEN._replace(on_nan="rewind")


def test_rewinds_and_drops_the_batch(bad, tmp_path, capsys):
    with pytest.raises(FloatingPointError, match="not finite at update"):
        train(again(bad), tmp_path / "stop", OFTEN)
    result = train(again(bad), tmp_path / "run", REWIND)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event["batches"]) for event in events] == [("rewind", 1)] * 3  # once an epoch
    assert capsys.readouterr().err.count("Rewinding to") == 3
    records = lines(tmp_path / "run")
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["samples"] for record in records] == [N, 2 * N, 3 * N]
    # By hand: pairs of micro-batches, without those that hold the bad image.
    stream, state, skipped = micro_batches(bad.dataset.train, MICRO, seed=CONFIG.seed), again(bad).state, []
    for update in range(3 * N // MICRO // 2):
        batches = [next(stream)[0] for _ in range(2)]
        if any(np.isnan(batch["image"]).any() for batch in batches):
            skipped.append(update)
            continue
        for batch in batches:
            state = bad.functions.accumulate(state, batch)
        state = bad.functions.apply_update(state, 1.0)
    assert [event["update"] for event in events] == [update + 1 - i for i, update in enumerate(skipped)]
    assert result.summary["updates"] == int(state.updates) == 37 - 3
    assert bits(result.params) == bits(state.params)


def test_a_kill_after_a_rewind_changes_nothing(bad, tmp_path, monkeypatch):
    whole = train(again(bad), tmp_path / "whole", REWIND)

    for count in (12, 20, 40):
        break_off(bad, count, tmp_path / "run", REWIND._replace(resume=True), monkeypatch)
    result = train(again(bad), tmp_path / "run", REWIND._replace(resume=True))
    assert bits(result.params) == bits(whole.params)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert (tmp_path / "run" / "events.jsonl").read_text() == (tmp_path / "whole" / "events.jsonl").read_text()


def test_rewinds_come_to_an_end(tmp_path):
    run = set_up(CONFIG._replace(method="bl", lr=1e30, epochs=2), small_digits())
    with pytest.raises(FloatingPointError, match="It was rewound 5 times: that is enough"):
        train(run, tmp_path, REWIND)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert len(events) == 5


# --- A folder that somebody else wrote.


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def checkpoints(workdir):
    return sorted((workdir / "checkpoints").iterdir(), key=lambda path: int(path.name))


@MANY_ERRORS
def test_nothing_is_unpickled(base, broken_off, tmp_path):
    # Every file of the last checkpoint in turn is a pickle that would run code, with a manifest that fits.
    ran = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists()  # the payload works
    ran.unlink()
    last = checkpoints(broken_off)[-1]
    names = [path.relative_to(broken_off) for path in last.rglob("*") if path.is_file()]
    tried = 0
    for name in names:
        workdir = tmp_path / "copy"
        shutil.copytree(broken_off, workdir)
        (workdir / name).write_bytes(pickle.dumps(Payload(ran)))
        if name.name != "manifest.json":
            for item in ("arrays", "record"):
                (workdir / last.relative_to(broken_off) / item / "manifest.json").unlink()
                write_manifest(workdir / last.relative_to(broken_off) / item)
        assert resumed_at(base, workdir) in (int(last.name), int(last.name) - 56)
        assert not ran.exists()
        shutil.rmtree(workdir)
        tried += 1
    assert tried >= 6


@MANY_ERRORS
def test_arrays_of_objects_are_refused(base, broken_off, capsys):
    # Zarr can hold pickled objects; TensorStore, which reads here, has no such type.
    last = checkpoints(broken_off)[-1]
    shutil.rmtree(last / "arrays")
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(last / "arrays", {"train.updates": np.zeros(3, np.int32)})
    [zarray] = (last / "arrays").rglob(".zarray")
    header = json.loads(zarray.read_text())
    zarray.write_text(json.dumps({**header, "dtype": "|O", "filters": [{"id": "pickle"}]}))
    write_manifest(last / "arrays")
    assert resumed_at(base, broken_off) == int(last.name) - 56
    assert f"the checkpoint at {last.name} examples is damaged (arrays: " in capsys.readouterr().err


def test_names_in_a_checkpoint_are_not_imported(base, broken_off, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    last = checkpoints(broken_off)[-1]
    for path in (last / "_CHECKPOINT_METADATA", last / "arrays" / "_METADATA"):
        text = json.loads(path.read_text())
        named = json.dumps(text).replace("orbax.checkpoint", "evil").replace("hessabs.training", "evil")
        path.write_text(json.dumps({**json.loads(named), "evil": "evil.Type", "item_handlers": "evil.Handler"}))
    (last / "arrays" / "manifest.json").unlink()
    write_manifest(last / "arrays")
    assert resumed_at(base, broken_off) == int(last.name)
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("content", [[], {"format": 2}, {"format": 1}, {"format": 1, "config": 7}])
def test_a_record_that_is_none(base, broken_off, content):
    for folder in checkpoints(broken_off):
        (folder / "record" / "metadata").write_text(json.dumps(content))
        (folder / "record" / "manifest.json").unlink()
        write_manifest(folder / "record")
    with pytest.raises(DamagedError, match="None of the checkpoints"):
        resumed_at(base, broken_off)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/link", "summary.json.partial"])
def test_links_are_refused(base, broken_off, tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (broken_off / name).unlink(missing_ok=True)
    (broken_off / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"must hold no links to go on with, got .*{name}"):
        train(again(base), broken_off, RESUME)
    assert outside.read_text() == "mine"


# --- A folder that somebody else uses.


def hold(workdir):
    """Start a process that holds the lock of a folder."""
    code = (
        "import pathlib, sys; from hessabs.training.saving.lock import lock_workdir\n"
        "with lock_workdir(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(workdir)]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_two_runs_cannot_share_a_folder_and_a_kill_releases_it(base, tmp_path):
    with hold(tmp_path) as process:
        with pytest.raises(
            BlockingIOError, match=f"in use by process {process.pid} on .*: two runs cannot share"
        ):
            train(again(base), tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        process.kill()
    assert (tmp_path / LOCK).exists()
    with lock_workdir(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_no_link(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=LOCK), lock_workdir(tmp_path / "run"):
        pass
    assert (tmp_path / "outside").read_text() == "mine"
