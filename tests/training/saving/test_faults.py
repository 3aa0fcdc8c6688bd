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

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hessabs.data import Arrays, epoch_order, micro_batches
from hessabs.models import create
from hessabs.training import files, loop, store, tasks
from hessabs.training.checkpoints import DamagedError, write_manifest
from hessabs.training.durability import Durability
from hessabs.training.files import LOCK, lock_workdir
from hessabs.training.look.results import find
from hessabs.training.look.watch import look
from hessabs.training.loop import train
from hessabs.training.run import _HESSIAN_DRAW
from hessabs.training.session import Session
from tests.training.runs import MICRO, N, again, bits, like, lines, make_run, small_digits
from tests.training.saving.ending import before, break_off

OFTEN = Durability(checkpoint_every="56samples")  # every 64: a batch has 16
RESUME = OFTEN._replace(resume=True)
SETTINGS = {"method": "bl", "lr_decay_epochs": ()}

pytestmark = [pytest.mark.sampled, pytest.mark.usefixtures("empty_curves")]
# Orbax closes its event loop at the first array that fails, and TensorStore tells it of the others.
MANY_ERRORS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def digits(*, poisoned):
    """Digits as floats; with poison one is NaN, none of those that the eigenvalue is measured on."""
    few = small_digits()
    train_set, test = (source.take(np.arange(len(source))) for source in (few.train, few.test))
    image = train_set["image"].astype(np.float32) / 255
    if poisoned:
        image[epoch_order(0, _HESSIAN_DRAW, N)[-1]] = np.nan
    return few._replace(
        train=Arrays({**train_set, "image": image}),
        test=Arrays({**test, "image": test["image"].astype(np.float32) / 255}),
    )


@pytest.fixture(scope="module")
def base():
    return make_run(tasks.linen(create("mlp", 10), digits(poisoned=False), name="digits"), **SETTINGS, epochs=2)


@pytest.fixture(scope="module")
def whole(base):
    """The bits of the run that nothing disturbs."""
    return bits(train(again(base)).params)


@pytest.fixture(scope="module")
def half(base, tmp_path_factory):
    """The folder of a run that ended in the middle."""
    workdir = tmp_path_factory.mktemp("half") / "run"
    break_off(base, 30, workdir, OFTEN)
    return workdir


@pytest.fixture
def broken_off(half, tmp_path):
    """A copy of it."""
    return shutil.copytree(half, tmp_path / "run")


def resumed_at(run, workdir):
    """The examples at the checkpoint where a run goes on, and 0 where it starts anew."""
    with Session(again(run), workdir, RESUME) as here:
        return here.begin().state.samples


@pytest.mark.slow
@MANY_ERRORS
def test_a_full_disk_leaves_the_last_good_checkpoint(base, whole, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        run = before(base, 20, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))
        with pytest.raises(OSError, match=r"could not be written.*File too large.*; make room") as caught:
            train(run, tmp_path / "run", OFTEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    last = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdecimal())
    assert last in (64, 128)  # the one at 128 may be under way when the disk is full
    assert f"The last good one is that at {last} examples" in str(caught.value)
    assert bits(train(again(base), tmp_path / "run", RESUME).params) == whole
    assert not list((tmp_path / "run" / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
@MANY_ERRORS
def test_a_full_disk_at_the_params_and_then_going_on(base, whole, tmp_path, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    save = store.save_network

    def save_on_a_full_disk(*arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        save(*arguments)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(store, "save_network", save_on_a_full_disk)
            with pytest.raises(
                OSError, match=r"`workdir` .*File too large.*; make room and go on with --resume"
            ):
                train(again(base), tmp_path / "run", OFTEN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run" / "summary.json").exists()
    trained = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_update", lambda *arguments: trained.append(arguments))
        result = train(again(base), tmp_path / "run", RESUME)
    assert trained == []  # all that is left is to write
    assert bits(result.params) == whole
    assert sorted(os.listdir(tmp_path / "run")) == [
        "checkpoints",
        "config.json",
        "curves.png",
        "metrics.jsonl",
        "params",
        "summary.json",
    ]


@pytest.mark.parametrize(
    ("name", "number", "advice"),
    [
        ("append_line", errno.ENOSPC, "; make room and go on with --resume."),
        pytest.param("write_json", errno.EROFS, "; name", marks=pytest.mark.slow),
    ],
)
def test_what_the_system_refuses_names_the_flag(base, whole, tmp_path, monkeypatch, name, number, advice):
    def refuse(path, *arguments):
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, name, refuse)
        with pytest.raises(
            OSError, match=rf"^`workdir` {tmp_path} cannot be used: {os.strerror(number)}"
        ) as caught:
            train(again(base), tmp_path, OFTEN)
    assert advice in str(caught.value)
    assert bits(train(again(base), tmp_path, RESUME).params) == whole


@pytest.mark.slow
@MANY_ERRORS
@pytest.mark.parametrize("epoch", [1, 2])  # a checkpoint is written after it, or the params
def test_a_folder_that_is_moved_meanwhile(base, whole, tmp_path, epoch):
    def move(event, record):
        if event == "epoch" and record["epoch"] == epoch:
            (tmp_path / "run").rename(tmp_path / "moved")

    with pytest.raises(FileNotFoundError, match="moved or removed while its run went on"):
        train(again(base), tmp_path / "run", OFTEN, [move])
    assert not (tmp_path / "run" / "summary.json").exists()
    result = train(again(base), tmp_path / "moved", RESUME)
    assert (bits(result.params), len(result.records)) == (whole, 2)


def test_a_lock_that_cannot_be_had_is_not_a_run_in_use(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.lockf", refuse)
    with pytest.raises(OSError, match="No locks available"), lock_workdir(tmp_path):
        pass


# --- A loss that is not finite.


@pytest.fixture(scope="module")
def bad(base):
    task = tasks.linen(create("mlp", 10), digits(poisoned=True), name="digits")
    return like(base, task=task, **SETTINGS, epochs=3)


REWIND = OFTEN._replace(on_nan="rewind")


@pytest.fixture(scope="module")
def rewound(bad, tmp_path_factory):
    """A run that drops batches: (its result, its folder)."""
    workdir = tmp_path_factory.mktemp("rewound") / "run"
    return train(again(bad), workdir, REWIND), workdir


def test_it_stops_unless_it_is_to_rewind(bad, tmp_path):
    with pytest.raises(FloatingPointError, match="not finite at update") as error:
        train(again(bad), tmp_path, OFTEN)
    written = json.loads((tmp_path / "diverged.json").read_text())
    assert written == {"diverged": str(error.value)}
    assert look(tmp_path).state == "diverged"
    (found,) = find(tmp_path)  # with the settings of its config
    assert (found.summary["micro_batch_size"], found.summary["diverged"]) == (MICRO, str(error.value))
    train(again(bad), tmp_path, REWIND)  # anew
    assert not (tmp_path / "diverged.json").exists()
    assert look(tmp_path).state == "finished"


def test_rewinds_and_drops_the_update(bad, rewound):
    result, workdir = rewound
    events = files.read_lines(workdir / "events.jsonl")
    assert [(event["event"], event["batches"]) for event in events] == [("rewind", 1)] * 3  # once an epoch
    records = lines(workdir)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["samples"] for record in records] == [208, 400, 600]  # an update ends in the second epoch
    # By hand: pairs of micro-batches, without those that hold the bad image.
    functions = bad.functions
    stream, state, skipped = micro_batches(bad.task.train, MICRO, seed=0), again(bad).state, []
    for update in range(3 * N // MICRO // 2):
        batches = [next(stream)[0] for _ in range(2)]
        if any(np.isnan(batch["image"]).any() for batch in batches):
            skipped.append(update)
            continue
        totals = functions.begin(state)
        for number, batch in enumerate(batches):
            totals = functions.add(state, totals, batch, None, number)
        state = functions.finish(state, totals, jnp.float32(1))
    assert [event["update"] for event in events] == [update + 1 - i for i, update in enumerate(skipped)]
    assert result.summary["updates"] == int(state.updates) == 37 - 3
    assert bits(result.params) == bits(state.params)


@pytest.mark.slow
def test_a_kill_after_a_rewind_changes_nothing(bad, rewound, tmp_path, capsys):
    whole, workdir = rewound
    for count in (12, 20, 40):
        break_off(bad, count, tmp_path / "run", REWIND._replace(resume=True))
    result = train(again(bad), tmp_path / "run", REWIND._replace(resume=True))
    assert capsys.readouterr().err.count("Rewinding to") >= 3
    assert bits(result.params) == bits(whole.params)
    assert lines(tmp_path / "run") == lines(workdir)
    assert (tmp_path / "run" / "events.jsonl").read_text() == (workdir / "events.jsonl").read_text()


def test_rewinds_come_to_an_end(base, tmp_path):
    run = again(base)
    finish = run.functions.finish

    def spoil(state, totals, lr_scale):
        return finish(state, totals, lr_scale * jnp.float32(1e30))

    spoil._cache_size = finish._cache_size
    broken = run._replace(functions=run.functions._replace(finish=spoil))
    with pytest.raises(FloatingPointError, match="It was rewound 5 times: that is enough"):
        train(broken, tmp_path, REWIND)
    assert len(files.read_lines(tmp_path / "events.jsonl")) == 5


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
        assert resumed_at(base, workdir) in (int(last.name), int(last.name) - 64)
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
    assert resumed_at(base, broken_off) == int(last.name) - 64
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


@pytest.mark.parametrize("content", [[], {"format": 1}, {"format": 2}, {"format": 2, "config": 7}])
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
        "import pathlib, sys; from hessabs.training.files import lock_workdir\n"
        "with lock_workdir(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(workdir)]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[3])}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
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
