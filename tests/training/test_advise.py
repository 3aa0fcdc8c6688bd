"""Advice: the rate that trials are best with, a batch near the noise scale, and a command that trains."""

import doctest
import itertools
import json
import math
import shlex

import numpy as np
import pytest
from matplotlib.figure import Figure

from hessabs import data, models
from hessabs.cli.main import main
from hessabs.curvature import CriticalBatchSize
from hessabs.training import Advice, OptimizerSettings, advise, tasks
from hessabs.training.look.advise import _first_batch, bracket, report
from hessabs.training.look.pictures import draw_advice

ADVICE = Advice(
    settings={"lr": 0.02, "batch_size": 256, "max_batch_size": 16_384, "warmup_epochs": 3.0, "epochs": 30},
    updates=3000,
    constant_updates=5859,
    trials={0.01: 0.5, 0.02: 0.4, 0.04: math.inf},
    trial_batch_size=128,
    trial_examples=10_000,
    noise=CriticalBatchSize(300.0, 20.0, 3.0, 0.01, {}),
    seconds={128: 0.1, 512: 0.4},
)


@pytest.mark.parametrize("best", [-7.3, -1.0, 0.0, 0.4, 5.9])
def test_the_best_rate_is_bracketed(best):
    found = bracket(lambda k: abs(k - best))
    chosen = min(found, key=found.get)
    assert abs(chosen - best) <= 0.5
    assert {chosen - 1, chosen + 1} <= found.keys()
    assert len(found) <= 11


def test_rates_that_diverge_are_worse_than_any_and_a_search_without_end_is_refused():
    found = bracket(lambda k: math.inf if k > -3 else -k)
    assert min(found, key=found.get) == -3
    with pytest.raises(ValueError, match="best rate is 10 factors of two from the first; pass an `lr` nearer"):
        bracket(lambda k: -k)
    with pytest.raises(ValueError, match="no rate gave a finite loss"):
        bracket(lambda k: math.inf)


@pytest.mark.parametrize(
    ("noise", "trial", "size"),
    [
        (300.0, 128, 128),
        (math.inf, 128, 128),
        (math.nan, 128, 128),
        (-5.0, 128, 128),
        (50.0, 128, 64),
        (44.0, 128, 32),
        (2.0, 128, 8),
        (1.0, 4, 4),
    ],
)
def test_the_first_batch_is_that_of_the_trials_unless_the_noise_scale_is_smaller(noise, trial, size):
    assert _first_batch(noise, trial) == size


def test_the_report_says_what_was_measured_and_what_is_not_known(monkeypatch):
    text = report(ADVICE, "hessabs train --lr 0.02")
    assert "0.01: 0.5000, 0.02: 0.4000, 0.04: diverged" in text
    assert "noise scale then: 300 ± 20 examples" in text
    loud = ADVICE._replace(noise=CriticalBatchSize(math.inf, math.nan, 3.0, -0.01, {}))
    assert "noise scale then: more than the 3,072 examples it was looked for in" in report(loud, "")
    assert "saves updates, and on this device alone no time" in text
    assert "30 epochs are at most 3,000 updates, fewer where" in text
    assert "to 5,859 of a batch that does not grow." in text
    assert "not known: the accuracy of a whole run" in text
    assert text.endswith("hessabs train --lr 0.02")
    faster = report(ADVICE._replace(seconds={128: 0.1, 512: 0.1}), "")
    assert "larger batches run up to 4.0 times faster here" in faster
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    draw_advice("", ADVICE)
    assert [len(axes.get_lines()) for axes in drawn[0].axes] == [1, 2, 1]


@pytest.mark.parametrize("span", [2, 8, 128, 2**20])
@pytest.mark.parametrize("low", [5e-4, 1.25e-3])
def test_the_ticks_of_the_picture_do_not_overlap(monkeypatch, low, span):
    steps = [2**power for power in range(span.bit_length())]
    advice = ADVICE._replace(
        trials={low * step: 1.0 for step in steps}, seconds={32 * step: 0.1 for step in steps[:12]}
    )
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    draw_advice("", advice)
    drawn[0].draw_without_rendering()
    for axes in drawn[0].axes[:2]:
        left, right = axes.get_xlim()
        texts = [text for text in axes.get_xticklabels() if left <= text.get_position()[0] <= right]
        boxes = [text.get_window_extent() for text in texts]
        assert len(boxes) >= 2
        assert all(one.x1 + 3 < two.x0 for one, two in itertools.pairwise(boxes)), [t.get_text() for t in texts]


def test_what_is_out_of_range_is_refused_before_anything_is_tried():
    task = tasks.linen(models.mlp(10, (4,)), data.load("digits"))
    for options, message in (
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"minutes": 0.0}, "`minutes` must"),
    ):
        with pytest.raises(ValueError, match=message):
            advise(task, OptimizerSettings(), **options)
    few = task._replace(train=data.subset(task.train, np.arange(99)))
    with pytest.raises(ValueError, match="at least 100 training examples to try rates on, got 99"):
        advise(few, OptimizerSettings())


def test_an_optimizer_without_a_rate_is_refused_before_anything_is_tried(tmp_path):
    path = tmp_path / "own.py"
    path.write_text("import optax\n\n\ndef make():\n    return optax.sgd(0.1)\n")
    task = tasks.linen(models.mlp(10, (4,)), data.load("digits"))
    with pytest.raises(ValueError, match=r"`lr` is not read by .*which has no such parameter"):
        advise(task, OptimizerSettings(f"{path}:make"))


@pytest.mark.slow
def test_the_command_advises_and_what_it_prints_trains_better_than_rates_far_from_it(capsys, tmp_path):
    picture = tmp_path / "advice.png"
    argv = ["advise", "--dataset=digits", "--model=mlp", "--optimizer=adamw", "--minutes=0.05", "--epochs=3"]
    assert main([*argv, f"--output={picture}"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("hessabs train")))[1:]
    losses = []
    for factor in (1, 1 / 64):
        lr = float(command[command.index("--lr") + 1]) * factor
        workdir = tmp_path / str(factor)
        given = [*command, "--lr", str(lr), "--workdir", str(workdir)]
        assert main(given) == 0
        losses.append(json.loads((workdir / "summary.json").read_text())["test_loss"])
    assert losses[0] < losses[1] / 2


@pytest.mark.slow
def test_the_example_of_the_docstring_runs():
    text = advise.__doc__.replace("# doctest: +SKIP", "")  # it takes seconds
    example = doctest.DocTestParser().get_doctest(text, {}, "advise", None, 0)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(failed=0, attempted=4)
