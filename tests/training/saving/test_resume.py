"""A run that is broken off and resumed ends with the bits of one that was not."""

import json
import os
import random
import shutil
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.batch_size.settings import METHODS
from hessabs.data import micro_batches
from hessabs.models import create
from hessabs.training import loop, tasks
from hessabs.training.checkpoints import DamagedError
from hessabs.training.durability import Durability, Marks, Period, parse_period
from hessabs.training.interruption import Interrupted
from hessabs.training.loop import train
from hessabs.training.loop_state import arrays_of, start
from hessabs.training.store import refuse_contradictions
from tests.training.runs import GROWING, MICRO, SETTINGS, N, again, bits, like, lines, make_run, small_digits
from tests.training.saving.ending import break_off

pytestmark = [pytest.mark.sampled, pytest.mark.usefixtures("empty_curves")]
EPOCHS = SETTINGS["epochs"]
NEEDED = {"gns": {"noise_scale": 4.0}, "fixed": {"grow_epochs": (1, 2)}}
LAST = 98  # micro-batches that are trained on, of 100: what is left fills no update
OFTEN = Durability(checkpoint_every=f"{7 * MICRO}samples")
RESUME = OFTEN._replace(resume=True)


def slow(*values):
    return [
        pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
        for value in values
    ]


@pytest.fixture(scope="module")
def base():
    return make_run()


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The run that nothing interrupts: (bits of its params, its lines, its folder)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = train(again(base), workdir, Durability(checkpoint_every="1epochs"))
    sizes = {record["batch_size"] for record in result.records}
    assert len(sizes) > 2  # it grows, else little is tested
    return bits(result.params), lines(workdir), workdir


@pytest.fixture(scope="module")
def half(base, tmp_path_factory):
    """The folder of a run that ended in the middle."""
    workdir = tmp_path_factory.mktemp("half") / "run"
    break_off(base, 32, workdir, OFTEN)
    return workdir


@pytest.fixture
def broken_off(half, tmp_path):
    """A copy of it."""
    return shutil.copytree(half, tmp_path / "run")


def saved(workdir):
    """The examples at the checkpoints of a run, the latest first."""
    return sorted((int(path.name) for path in (workdir / "checkpoints").iterdir()), reverse=True)


@pytest.mark.parametrize("step", [28, *slow(1, 26, 43, LAST)])
def test_resumed_run_has_the_same_bits(base, whole, tmp_path, step):
    break_off(base, step, tmp_path, OFTEN)
    result = train(again(base), tmp_path, RESUME)
    assert bits(result.params) == whole[0]
    assert lines(tmp_path) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in METHODS if name != "absa"])
def test_each_rule(tmp_path, method):
    growing = {} if method == "bl" else {"max_batch_size": GROWING["max_batch_size"]}
    settings = {"method": method, "epochs": 3, "lr_decay_epochs": (2,), **growing, **NEEDED.get(method, {})}
    run = make_run(**settings)._replace(final={})
    want = bits(train(again(run), tmp_path / "whole").params)
    break_off(run, random.Random(method).randint(20, 60), tmp_path / "run", OFTEN)
    assert bits(train(again(run), tmp_path / "run", RESUME).params) == want
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


@pytest.mark.slow
def test_broken_off_again_and_again(base, whole, tmp_path):
    for step in (10, 9, 26, 31):
        break_off(base, step, tmp_path, RESUME)
    result = train(again(base), tmp_path, RESUME)
    assert bits(result.params) == whole[0]
    assert lines(tmp_path) == whole[1]
    assert result.summary["samples"] == EPOCHS * N


def test_a_finished_run_says_so(base, whole, tmp_path, capsys):
    workdir = shutil.copytree(whole[2], tmp_path / "run")
    before = sorted(path.stat().st_mtime_ns for path in workdir.rglob("*"))
    result = train(again(base), workdir, RESUME)
    assert "has finished; nothing is left to do" in capsys.readouterr().err
    assert bits(result.params) == whole[0]
    assert result.summary == json.loads((workdir / "summary.json").read_text())
    assert sorted(path.stat().st_mtime_ns for path in workdir.rglob("*")) == before


@pytest.mark.parametrize(
    ("method", "epochs"),
    [("gg", 3), *slow(("bl", 2), ("bl", 3), ("abs", 2), ("gg", 2))],  # 3: its last micro-batch fills no update
)
@pytest.mark.slow
def test_a_finished_run_goes_on_to_what_more_epochs_would_have_given(tmp_path, capsys, method, epochs):
    # No schedule of these depends on the number of epochs; the decay after the third one is still to come.
    settings = {"method": method, **({} if method == "bl" else {"max_batch_size": 8 * MICRO})}
    short = make_run(**settings, epochs=epochs)
    train(again(short), tmp_path / "run", Durability())
    (tmp_path / "run" / "attack-pgd-linf-000000.json").write_text("{}")  # of the shorter run's network
    assert "going on" not in capsys.readouterr().err
    result = train(like(short, **settings), tmp_path / "run", RESUME)
    assert "has finished; going on to epoch 4." in capsys.readouterr().err
    want = train(like(short, **settings), tmp_path / "whole", Durability())
    assert bits(result.params) == bits(want.params)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert result.summary["epochs"] == EPOCHS
    assert not list((tmp_path / "run").glob("attack*"))
    with pytest.raises(ValueError, match="--epochs is 4 in the checkpoint and 3 now"):
        train(like(short, **settings, epochs=3), tmp_path / "run", RESUME)


@pytest.mark.slow
def test_a_finished_run_with_an_end_of_adversarial_examples(base, tmp_path):
    train(like(base, epochs=2, adversarial_epochs=1), tmp_path / "run", Durability())
    with pytest.raises(ValueError, match="--adversarial_epochs is 1 in the checkpoint and 2 now"):
        train(like(base, adversarial_epochs=2), tmp_path / "run", RESUME)
    result = train(like(base, adversarial_epochs=1), tmp_path / "run", RESUME)
    assert bits(result.params) == bits(train(like(base, adversarial_epochs=1)).params)


@pytest.mark.parametrize(
    ("schedule", "fits"), [("step", True), ("constant", True), ("cosine", False), ("wsd", False)]
)
def test_more_epochs_are_refused_where_the_rate_falls_to_the_end(schedule, fits):
    two, four = ({"config": {"schedule": schedule, "epochs": epochs}, "data": {}} for epochs in (2, 4))
    if fits:
        refuse_contradictions(two, four)
    else:
        with pytest.raises(ValueError, match="--epochs is 2 in the checkpoint and 4 now"):
            refuse_contradictions(two, four)


@pytest.mark.slow
def test_resume_in_an_empty_folder_starts_anew_in_any_thread(base, whole, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(again(base), tmp_path / "new", RESUME)))
    thread.start()
    thread.join()
    assert bits(results[0].params) == whole[0]


def test_checkpoints_kept(whole):
    # The last two, and the best of those at the ends of epochs.
    accuracy = {line["samples"]: line["test_accuracy"] for line in whole[1]}
    there = saved(whole[2])
    assert there[0] == LAST * MICRO
    ends = [samples for samples in accuracy if samples <= LAST * MICRO]
    best = max(ends, key=lambda samples: (accuracy[samples], -samples))
    assert set(there) == {best, LAST * MICRO, ends[-1]}


def test_settings_and_data_that_contradict_are_shown_with_both_values(base, broken_off):
    # The programs are those of `base`: none of these runs comes so far as to use them.
    message = (
        r"--lr_decay_epochs is 3 in the checkpoint and 1,2 now; --lr is 0.02 in the checkpoint and 0.5 now"
    )
    with pytest.raises(ValueError, match=message):
        train(like(base, lr=0.5, lr_decay_epochs=(1, 2)), broken_off, RESUME)
    with pytest.raises(ValueError, match=r"--batch_size is 16 .* and 32 now.*Its place in the data, its rule"):
        train(like(base, batch_size=4 * MICRO), broken_off, RESUME)
    digits = small_digits()
    train_set = {**digits.train.take(np.arange(N)), "label": digits.train.take(np.arange(N))["label"][::-1]}
    settings = {"dataset": "digits", "model": "mlp"}
    task = tasks.linen(create("mlp", 10), digits._replace(train=train_set), name="digits", settings=settings)
    with pytest.raises(ValueError, match=r"of the data the digest is .* in the checkpoint and"):
        train(like(base, task=task), broken_off, RESUME)


@pytest.mark.slow
def test_data_may_lie_elsewhere(base, whole, broken_off):
    record = {**base.record, "config": {**base.record["config"], "data_dir": "elsewhere"}}
    assert bits(train(again(base)._replace(record=record), broken_off, RESUME).params) == whole[0]


@pytest.mark.parametrize(
    ("item", "damage"),
    [("arrays", "flip"), *slow(("arrays", "remove"), ("record", "truncate"), ("record", "flip"))],
)
def test_the_checkpoint_before_a_damaged_one_is_used(base, whole, broken_off, capsys, item, damage):
    last, before = saved(broken_off)[:2]
    folder = broken_off / "checkpoints" / str(last) / item
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    result = train(again(base), broken_off, RESUME)
    told = capsys.readouterr().err
    assert f"the checkpoint at {last} examples is damaged ({item}/" in told
    assert path.name in told
    assert f"going on after {before} examples" in told
    assert bits(result.params) == whole[0]
    assert lines(broken_off) == whole[1]


def test_all_checkpoints_damaged(base, broken_off):
    for path in (broken_off / "checkpoints").glob("*/record/manifest.json"):
        path.write_text("{}")
    with pytest.raises(DamagedError, match=r"None of the checkpoints .* can be used; pass --overwrite"):
        train(again(base), broken_off, RESUME)
    assert len(saved(broken_off)) >= 2


@pytest.mark.parametrize("signum", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_a_signal_saves_and_ends(base, whole, tmp_path, signum, monkeypatch):
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    calls = 0

    def observe(*arguments):
        nonlocal calls
        calls += 1
        if calls == 2:  # during the second measurement
            os.kill(os.getpid(), signum)
        return original(*arguments)

    original = loop._observe
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_observe", observe)
        with pytest.raises(Interrupted, match="saved after 400 examples; --resume goes on there") as caught:
            train(again(base), tmp_path, Durability())
    assert caught.value.signum == signum
    assert {each: signal.getsignal(each) for each in handlers} == handlers
    assert saved(tmp_path) == [400]
    assert bits(train(again(base), tmp_path, RESUME).params) == whole[0]
    assert lines(tmp_path) == whole[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, *slow(signal.SIGTERM)])
def test_a_signal_after_the_training_ends_at_once(base, whole, tmp_path, signum):
    def measure(*arguments):
        os.kill(os.getpid(), signum)
        raise AssertionError("the signal came and nothing happened")

    with pytest.raises(Interrupted, match=f"saved after {LAST * MICRO} examples, the last") as caught:
        train(again(base)._replace(measure_final=measure), tmp_path, Durability())
    assert caught.value.signum == signum
    assert not (tmp_path / "summary.json").exists()
    assert bits(train(again(base), tmp_path, RESUME).params) == whole[0]
    assert lines(tmp_path) == whole[1]


def test_a_checkpoint_is_a_copy(base):
    # The arrays of a state that is donated afterwards keep their values.
    run = again(base)
    state = start(run)
    before = {name: array.copy() for name, array in arrays_of(state).items()}
    arrays = arrays_of(state)
    train_state, functions = state.train, run.functions
    for batch, _ in (next(micro_batches(run.task.train, MICRO, seed=i)) for i in range(4)):
        totals = functions.add(train_state, functions.begin(train_state), batch, None, 0)
        train_state = functions.finish(train_state, totals, jnp.float32(1))
    assert state.train.params["Dense_0"]["kernel"].is_deleted()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize(
    ("text", "want"), [("100updates", (100, "updates")), ("0.5min", (0.5, "min")), ("1epochs", (1, "epochs"))]
)
def test_periods(text, want):
    assert parse_period(text) == Period(*want)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1epochs", [10, 20, 30]),
        ("0.5epochs", [5, 10, 15, 20, 25, 30]),
        ("0.1epochs", list(range(1, 31))),
        ("1.5epochs", [15, 30]),
        ("7updates", [7, 14, 21, 28]),
    ],
)
def test_a_period_passes_at_its_multiples(text, want):
    marks = [Marks(n, 20 * n, 0.0, n // 10 + n % 10 / 10) for n in range(31)]  # epochs of ten updates
    saved = [0]
    for n in range(1, 31):
        if parse_period(text).has_passed(marks[n], marks[saved[-1]]):
            saved.append(n)
    assert saved[1:] == want


def test_a_period_of_epochs_passes_at_the_first_update_beyond_its_end():
    first, second = (Marks(0, 0, 0.0, epochs) for epochs in (0.9, 1.04))
    assert Period(1, "epochs").has_passed(second, first)
    assert not Period(1, "epochs").has_passed(Marks(0, 0, 0.0, 1.98), second)


@pytest.mark.parametrize("text", ["", "10", "min", "0min", "-1epochs", "10 parsecs", "1e3samples"])
def test_periods_that_are_none(text):
    with pytest.raises(ValueError, match="`checkpoint_every` must be a positive number and one of"):
        parse_period(text)
