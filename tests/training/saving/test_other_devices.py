"""A checkpoint does not know how many devices there were: a run goes on on another number of them."""

import functools
import shutil

import jax
import numpy as np
import pytest

from hessabs.training.checkpoints import Checkpoints
from hessabs.training.durability import Durability
from hessabs.training.loop import train
from hessabs.training.loop_state import start, templates
from tests.training.runs import MICRO, digits_task, like, lines, make_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("empty_curves")]
EXACT = ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction")
NUMBERS = (1, 4)
SETTINGS = {"lr_decay_epochs": (), "adversarial_epochs": 1, "patience": 0}


@functools.cache
def base(devices):
    """A run whose compiled functions all on so many devices share."""
    return make_run(**SETTINGS, devices=devices, epochs=1)


def go(devices, epochs, workdir):
    run = like(base(devices), **SETTINGS, devices=devices, epochs=epochs)
    return train(run, workdir, Durability(checkpoint_every="1epochs", resume=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs of one epoch, by their number of devices."""
    folders = {devices: tmp_path_factory.mktemp("run") / f"{devices}" for devices in NUMBERS}
    for devices, folder in folders.items():
        go(devices, 1, folder)
    return folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two epochs on one device: (its result, its folder)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    return go(1, 2, workdir), workdir


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def read(folder):
    def use(saved):
        return saved.record, saved.read_arrays(templates(start(base(1))))

    return Checkpoints(folder / "checkpoints", 2).latest(use)


def test_a_checkpoint_is_the_same_on_one_and_on_four(runs):
    (one_record, one), (record, arrays) = (read(runs[devices]) for devices in NUMBERS)
    assert one.keys() == arrays.keys()
    assert one_record["samples"] == 24 * MICRO  # inside the epoch: the last micro-batch fills no update
    for name, array in one.items():
        assert arrays[name].dtype == array.dtype
        if name == "train.loss" or not np.issubdtype(array.dtype, np.floating):
            continue
        close(arrays[name], array)
    for name in ("decision", "updates", "samples", "position", "drops", "format", "data"):
        assert record[name] == one_record[name]


@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 1)])
def test_it_goes_on_on_either(runs, whole, tmp_path, capsys, first, then):
    workdir = shutil.copytree(runs[first], tmp_path / "run")
    result = go(then, 2, workdir)
    assert f"going on after {24 * MICRO} examples" in capsys.readouterr().err
    want, folder = whole
    assert len(jax.tree.leaves(result.params)[0].sharding.device_set) == then
    jax.tree.map(close, result.params, want.params)
    for a, b in zip(lines(workdir), lines(folder), strict=True):
        assert [a[name] for name in EXACT] == [b[name] for name in EXACT]
        assert a["train_loss"] == pytest.approx(b["train_loss"], abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"method": "bl", "robust": "free"}, {"method": "bl", "ema": 100, "optimizer": "adamw", "lr": 0.001}],
    ids=["free", "ema"],
)
def test_its_arrays_have_the_same_names_and_shapes(settings):
    one, several = (
        templates(start(make_run(digits_task(), **settings, devices=devices))) for devices in (1, 4)
    )
    assert {name: (a.shape, a.dtype) for name, a in one.items()} == {
        name: (a.shape, a.dtype) for name, a in several.items()
    }
