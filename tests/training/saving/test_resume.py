"""A run that is broken off and resumed ends with the bits of one that was not."""

import json
import os
import shutil
import signal
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from hessabs.training import loop, set_up, train
from hessabs.training.saving.durability import Durability, Period, parse_period
from hessabs.training.saving.interruption import Interrupted
from hessabs.training.saving.manifest import DamagedError
from hessabs.training.setup import make_controller
from tests.training.saving.runs import CONFIG, MICRO, N, again, bits, lines, small_digits

STEPS = CONFIG.epochs * (N // MICRO)
OFTEN = Durability(checkpoint_every=f"{7 * MICRO}samples")
RESUME = OFTEN._replace(resume=True)


class Broken(Exception):
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def base():
    return set_up(CONFIG, small_digits())


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """The run that nothing interrupts: (bits of its params, its lines, its folder)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    result = train(again(base), workdir, Durability(checkpoint_every="1epochs"))
    sizes = {record["batch_size"] for record in result.records}
    assert len(sizes) > 2  # it grows, else little is tested
    return bits(result.params), lines(workdir), workdir


def break_at(run, step):
    """Make a run that ends before a micro-batch."""
    calls = 0

    def breaking(function):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == step:
                raise Broken
            return function(*arguments)

        call._cache_size = function._cache_size
        return call

    names = ("accumulate", "accumulate_adversarial", "update", "update_adversarial")
    functions = run.functions._replace(**{name: breaking(getattr(run.functions, name)) for name in names})
    return run._replace(functions=functions)


@pytest.mark.parametrize("step", [1, 26, 43, STEPS])
def test_resumed_run_has_the_same_bits(base, whole, tmp_path, step):
    with pytest.raises(Broken):
        train(break_at(again(base), step), tmp_path, OFTEN)
    result = train(again(base), tmp_path, RESUME)
    assert bits(result.params) == whole[0]
    assert lines(tmp_path) == whole[1]


def test_broken_off_again_and_again(base, whole, tmp_path):
    ends = 0
    for step in (10, 8, 26, 31):
        with pytest.raises(Broken):
            train(break_at(again(base), step), tmp_path, RESUME)
        ends += 1
    assert ends == 4
    result = train(again(base), tmp_path, RESUME)
    assert bits(result.params) == whole[0]
    assert lines(tmp_path) == whole[1]
    assert result.summary["samples"] == CONFIG.epochs * N


def test_a_finished_run_says_so(base, whole, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(whole[2], workdir)
    before = sorted(path.stat().st_mtime_ns for path in workdir.rglob("*"))
    result = train(again(base), workdir, RESUME)
    assert "has finished; nothing is left to do" in capsys.readouterr().err
    assert bits(result.params) == whole[0]
    assert result.summary == json.loads((workdir / "summary.json").read_text())
    assert sorted(path.stat().st_mtime_ns for path in workdir.rglob("*")) == before


def more(run, epochs, **changes):
    """A run like one, of more epochs, with the same compiled functions."""
    config = run.config._replace(epochs=epochs, **changes)
    return again(run)._replace(config=config, controller=make_controller(config, run.epoch_examples))


@pytest.mark.parametrize("method", ["bl", "abs", "gg"])
def test_a_finished_run_goes_on_to_what_more_epochs_would_have_given(tmp_path, capsys, method):
    # No schedule of these depends on the number of epochs; the decay after the third one is still to come.
    short = set_up(CONFIG._replace(method=method, epochs=2), small_digits())
    train(again(short), tmp_path / "run", Durability())
    (tmp_path / "run" / "attack-pgd-linf-000000.json").write_text("{}")  # of the shorter run's network
    assert "going on" not in capsys.readouterr().err
    result = train(more(short, 4), tmp_path / "run", RESUME)
    assert "has finished; going on to epoch 4." in capsys.readouterr().err
    want = train(more(short, 4), tmp_path / "whole", Durability())
    assert bits(result.params) == bits(want.params)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert result.summary["epochs"] == 4
    assert not list((tmp_path / "run").glob("attack*"))
    with pytest.raises(ValueError, match="--epochs is 4 in the checkpoint and 3 now"):
        train(more(short, 3), tmp_path / "run", RESUME)


def test_a_finished_run_with_an_end_of_adversarial_examples(base, tmp_path):
    short = more(base, 2, adversarial_epochs=1)
    train(short, tmp_path / "run", Durability())
    with pytest.raises(ValueError, match="--adversarial_epochs is 1 in the checkpoint and 2 now"):
        train(more(base, 4, adversarial_epochs=2), tmp_path / "run", RESUME)
    result = train(more(base, 4, adversarial_epochs=1), tmp_path / "run", RESUME)
    assert bits(result.params) == bits(train(more(base, 4, adversarial_epochs=1)).params)


def test_another_batch_is_refused_with_the_reason(base, tmp_path):
    with pytest.raises(Broken):
        train(break_at(again(base), 20), tmp_path, OFTEN)
    with pytest.raises(ValueError, match=r"--batch_size is 16 .* and 32 now.*Its place in the data, its rule"):
        train(more(base, CONFIG.epochs, batch_size=2 * CONFIG.batch_size), tmp_path, RESUME)


def test_resume_in_an_empty_folder_starts_anew(base, whole, tmp_path):
    assert bits(train(again(base), tmp_path / "new", RESUME).params) == whole[0]


def test_checkpoints_kept(base, whole):
    # Four epochs: the last two, and the best.
    accuracy = {line["samples"]: line["test_accuracy"] for line in whole[1]}
    best = max(accuracy, key=lambda samples: (accuracy[samples], -samples))
    kept = {int(path.name) for path in (whole[2] / "checkpoints").iterdir()}
    assert kept == {best, *sorted(accuracy)[-2:]}


def test_settings_that_contradict_are_shown_with_both_values(base, tmp_path):
    with pytest.raises(Broken):
        train(break_at(again(base), 20), tmp_path, OFTEN)
    other = base._replace(config=base.config._replace(lr=0.5, lr_decay_epochs=(1, 2)))
    message = (
        r"--lr is 0.02 in the checkpoint and 0.5 now; --lr_decay_epochs is 3 in the checkpoint and 1,2 now"
    )
    with pytest.raises(ValueError, match=message):
        train(again(other), tmp_path, RESUME)
    labels = base.dataset.train["label"][::-1]
    dataset = base.dataset._replace(train={**base.dataset.train, "label": labels})
    with pytest.raises(ValueError, match="the data's labels are"):
        train(again(base)._replace(dataset=dataset), tmp_path, RESUME)
    moved = base._replace(config=base.config._replace(data_dir="elsewhere"))
    assert train(again(moved), tmp_path, RESUME).summary["samples"] == CONFIG.epochs * N


@pytest.mark.parametrize(
    ("item", "damage"),
    [("arrays", "flip"), ("arrays", "remove"), ("record", "truncate"), ("record", "flip")],
)
def test_the_checkpoint_before_a_damaged_one_is_used(base, whole, tmp_path, capsys, item, damage):
    with pytest.raises(Broken):
        train(break_at(again(base), 24), tmp_path, OFTEN)
    last, before = sorted((int(path.name) for path in (tmp_path / "checkpoints").iterdir()), reverse=True)[:2]
    folder = tmp_path / "checkpoints" / str(last) / item
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    result = train(again(base), tmp_path, RESUME)
    told = capsys.readouterr().err
    assert f"the checkpoint at {last} examples is damaged ({item}/" in told
    assert path.name in told
    assert f"going on after {before} examples" in told
    assert bits(result.params) == whole[0]
    assert lines(tmp_path) == whole[1]


def test_all_checkpoints_damaged(base, tmp_path):
    with pytest.raises(Broken):
        train(break_at(again(base), 24), tmp_path, OFTEN)
    for path in (tmp_path / "checkpoints").glob("*/record/manifest.json"):
        path.write_text("{}")
    with pytest.raises(DamagedError, match=r"None of the checkpoints .* can be used; pass --overwrite"):
        train(again(base), tmp_path, RESUME)
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 2


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
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
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["400"]
    assert bits(train(again(base), tmp_path, RESUME).params) == whole[0]
    assert lines(tmp_path) == whole[1]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_training_ends_at_once(base, whole, tmp_path, signum):
    def measure(*arguments):
        os.kill(os.getpid(), signum)
        raise AssertionError("the signal came and nothing happened")

    with pytest.raises(Interrupted, match=f"saved after {CONFIG.epochs * N} examples, the last") as caught:
        train(again(base)._replace(measure_final=measure), tmp_path, Durability())
    assert caught.value.signum == signum
    assert not (tmp_path / "summary.json").exists()
    assert bits(train(again(base), tmp_path, RESUME).params) == whole[0]
    assert lines(tmp_path) == whole[1]


def test_trains_outside_the_main_thread(base, whole, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(again(base), tmp_path, OFTEN)))
    thread.start()
    thread.join()
    assert bits(results[0].params) == whole[0]


def test_a_checkpoint_is_a_copy(base):
    # The arrays of a state that is donated afterwards keep their values.
    from hessabs.data import micro_batches
    from hessabs.training.loop_state import start
    from hessabs.training.saving.snapshot import arrays_of

    run = again(base)
    state = start(run)
    before = {name: array.copy() for name, array in arrays_of(state).items()}
    arrays = arrays_of(state)
    train_state = state.train
    for batch, _ in (next(micro_batches(run.dataset.train, MICRO, seed=i)) for i in range(4)):
        train_state = run.functions.update(train_state, batch, jnp.float32(1))
    assert state.train.params["Dense_0"]["kernel"].is_deleted()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


@pytest.mark.parametrize(
    ("text", "want"), [("100updates", (100, "updates")), ("0.5min", (0.5, "min")), ("1epochs", (1, "epochs"))]
)
def test_periods(text, want):
    assert parse_period(text) == Period(*want)


@pytest.mark.parametrize("text", ["", "10", "min", "0min", "-1epochs", "10 parsecs", "1e3samples"])
def test_periods_that_are_none(text):
    with pytest.raises(ValueError, match="`checkpoint_every` must be a positive number and one of"):
        parse_period(text)
