"""A run that is saved on some devices goes on on another number of them, to float tolerance."""

import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import pathlib, sys
import jax, numpy as np
from hessabs.training import loop, set_up, train
from hessabs.training.saving.durability import Durability
from tests.training.saving.runs import CONFIG, lines, small_digits

folder, config = pathlib.Path(sys.argv[1]), CONFIG._replace(epochs=2, lr_decay_epochs=())
dataset, train_on, often = small_digits(), loop._train_on, Durability(checkpoint_every="56samples")
whole = train(set_up(config._replace(devices=1), dataset), folder / "whole")

def end_later(*arguments):
    if arguments[1].samples >= 240:
        raise KeyError("the end")
    return train_on(*arguments)

for first, then in ((1, 4), (4, 1)):
    workdir = folder / f"{first}"
    loop._train_on = end_later
    try:
        train(set_up(config._replace(devices=first), dataset), workdir, often)
        raise AssertionError
    except KeyError:
        pass
    loop._train_on = train_on
    run = set_up(config._replace(devices=then), dataset)
    result = train(run, workdir, often._replace(resume=True))
    assert len(jax.tree.leaves(result.params)[0].sharding.device_set) == then
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, result.params, whole.params)
    for a, b in zip(lines(workdir), lines(folder / "whole"), strict=True):
        exact = ("epoch", "updates", "samples", "batch_size", "lr", "adversarial_fraction")
        assert [a[k] for k in exact] == [b[k] for k in exact]
        assert abs(a["train_loss"] - b["train_loss"]) < 1e-4
print("same")
"""


def test_one_and_four(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(pathlib.Path(__file__).parents[3]),
        "JAX_NUM_CPU_DEVICES": "4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "same\n", done.stderr[-3000:]
    assert "going on after 224 examples" in done.stderr
