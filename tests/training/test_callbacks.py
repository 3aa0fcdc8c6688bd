"""Callbacks are told what happens, agree with the run after a kill, and cannot lose it."""

import builtins
import csv
import json
import sys
import types

import pytest

from hessabs.training.callbacks import CallbackError, CallbackSettings, call_all, make_callbacks
from hessabs.training.fields import check

NAN = float("nan")


def epoch(number: int, **more):
    return {"epoch": number, "samples": 100 * number, "eigenvalue": NAN, "test_accuracy": 90.0 + number, **more}


def decision(samples: int, batch_size: int):
    return {
        "samples": samples,
        "updates": samples // 10,
        "batch_size": batch_size,
        "lr": 0.1,
        "eigenvalue": 3.5,
    }


def start(samples: int = 0, records=()):
    # As they come from disk: what is not finite is null there.
    plain = [{name: None if v != v else v for name, v in record.items()} for record in records]
    return {
        "workdir": None,
        "settings": {"lr": 0.1},
        "samples": samples,
        "records": json.loads(json.dumps(plain)),
    }


def tell(callback, *events):
    for event, record in events:
        callback(event, record)


WHOLE = [
    ("start", start()),
    ("epoch", epoch(1)),
    ("decision", decision(150, 64)),
    ("epoch", epoch(2)),
    ("decision", decision(250, 128)),
    ("epoch", epoch(3, tracked={"gradient_norm": 2.0})),
    ("end", {"test_accuracy": 93.0}),
]
# Killed after the third epoch, gone on from 180 examples: it is told again of all after that.
KILLED = [*WHOLE[:6], ("start", start(180, [epoch(1)])), *WHOLE[3:]]


def test_csv_is_the_same_after_a_kill(tmp_path):
    [callback] = make_callbacks(["csv"], tmp_path)
    tell(callback, *WHOLE)
    path = tmp_path / "metrics.csv"
    text = path.read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[0] == {"epoch": "1", "samples": "100", "eigenvalue": "", "test_accuracy": "91.0", "tracked": ""}
    assert json.loads(rows[2]["tracked"]) == {"gradient_norm": 2.0}
    tell(callback, *KILLED[:7])
    assert [row["epoch"] for row in csv.DictReader(path.read_text().splitlines())] == ["1"]
    tell(callback, *KILLED[7:])
    assert path.read_text() == text
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def read_events(folder):
    """The scalars that TensorBoard shows: at a session start it forgets all from its step on."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # length, its checksum, an event, its checksum
            size = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == SessionLog.START:
                shown = [point for point in shown if point[1] < event.step]
            shown += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return shown


def test_tensorboard_shows_no_point_twice_after_a_kill(tmp_path, monkeypatch):
    board = pytest.importorskip("tensorboardX")
    writers, real = [], board.SummaryWriter

    def writer(*args, **kwargs):
        writers.append(real(*args, **kwargs))
        return writers[-1]

    monkeypatch.setattr(board, "SummaryWriter", writer)
    shown = []
    for name, parts in (("whole", [WHOLE]), ("killed", [KILLED[:6], KILLED[6:]])):
        for part in parts:
            tell(make_callbacks(["tensorboard"], tmp_path / name)[0], *part)
            writers[-1].close()  # as at the end of a process
        shown.append(sorted(read_events(tmp_path / name / "tensorboard")))
    assert shown[0] == shown[1]
    tags = {(tag, step): value for tag, step, value in shown[0]}
    assert tags["test_accuracy", 200] == 92
    assert tags["decision/batch_size", 250] == 128
    assert tags["tracked/gradient_norm", 300] == 2
    assert ("eigenvalue", 100) not in tags
    assert len(tags) == len(shown[0])


class StubRun:
    def __init__(self, name, summary):
        self.id, self.summary, self.logged, self.finished = name, summary, [], False

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "samples")

    def log(self, values):
        self.logged.append(values)
        self.summary.update(values)

    def finish(self):
        self.finished = True


@pytest.fixture
def stub_wandb(monkeypatch):
    runs = {}

    def init(*, dir, id, resume, config):
        assert config == {"lr": 0.1}
        assert (resume == "allow") == (id is not None)
        name = id or f"run{len(runs)}"
        before = runs.get(name)
        runs[name] = StubRun(name, dict(before.summary) if before else {})
        runs[name].logged = before.logged if before else []
        return runs[name]

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_goes_on_with_its_run(stub_wandb, tmp_path):
    [callback] = make_callbacks(["wandb"], tmp_path)
    tell(callback, *WHOLE)
    assert list(stub_wandb) == ["run0"]
    whole = stub_wandb["run0"]
    assert whole.finished
    assert whole.logged[0] == {"epoch": 1, "samples": 100, "test_accuracy": 91}
    assert whole.logged[1]["decision/batch_size"] == 64
    assert whole.summary["test_accuracy"] == 93
    for part in (KILLED[:6], KILLED[6:]):
        [callback] = make_callbacks(["wandb"], tmp_path)
        tell(callback, *part)
    assert list(stub_wandb) == ["run0", "run1"]  # another run from its start, and then the same
    assert stub_wandb["run1"].logged == whole.logged
    assert stub_wandb["run1"].finished


@pytest.mark.parametrize(
    ("name", "package", "advice"),
    [("wandb", "wandb", "pip install wandb"), ("tensorboard", "tensorboardX", r"hessabs\[train\]")],
)
def test_a_package_that_is_missing(monkeypatch, tmp_path, name, package, advice):
    real = builtins.__import__

    def missing(wanted, *args, **kwargs):
        if wanted == package:
            raise ImportError(wanted)
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=f"callback {name} needs .*{advice}"):
        make_callbacks([name], tmp_path)


def test_a_callback_of_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def make():\n    return lambda event, record: record['path'].write_text(event)\n"
        "def nothing():\n    return 3\n"
    )
    callbacks = make_callbacks((f"{tmp_path / 'mine.py'}:make",), tmp_path)
    call_all(callbacks, "epoch", {"path": tmp_path / "told"}, save=lambda: None)
    assert (tmp_path / "told").read_text() == "epoch"
    with pytest.raises(
        ValueError, match=r"mine.py, line 3: nothing\(\) returned a int; expected a function of"
    ):
        make_callbacks([f"{tmp_path / 'mine.py'}:nothing"], tmp_path)
    with pytest.raises(CallbackError, match=r"The callback .*mine.py:make raised KeyError at the event 'end'"):
        call_all(callbacks, "end", {}, save=lambda: None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cvs"], r"`callbacks` must be csv, tensorboard, wandb or FILE.py:factory, got 'cvs'; the nearest is"),
        (["csv", "csv"], r"`callbacks` must name each once, got 'csv' twice"),
    ],
)
def test_callbacks_that_cannot_be(tmp_path, names, message):
    check(CallbackSettings(tuple(names)))
    with pytest.raises(ValueError, match=message):
        make_callbacks(names, tmp_path)


def test_a_callback_that_raises_cannot_lose_the_run():
    told = []

    def first(event, record):
        told.append(record)
        record["batch_size"] = 0  # its own copy

    def second(event, record):
        told.append(record)
        raise ZeroDivisionError("oops")

    record = decision(10, 64)
    with pytest.raises(
        CallbackError, match=r"second raised ZeroDivisionError at the event 'decision': oops"
    ) as caught:
        call_all([first, second, first], "decision", record, save=lambda: told.append("saved"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert told == [{**record, "batch_size": 0}, record, "saved"]
