"""``hessabs plan``: what it prints, and what it refuses in one line."""

from pathlib import Path

import numpy as np
import pytest

from hessabs import cli
from hessabs.training.look.plan import num_examples
from hessabs.training.tasks.named import TaskSettings, make_named
from tests.batch_size.slides import SETTINGS, UPDATES

ROOT = Path(__file__).parent.parent


def run(capsys, *flags):
    status = cli.main(["plan", *flags])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize("method", ["bl", "fb", "gg"])
def test_the_command_counts_as_the_slides_do(capsys, method):
    epochs = SETTINGS["cifar10", "resnet18"].epochs
    sizes = "--batch_size=640" if method == "bl" else "--max_batch_size=640"
    flags = [f"--epochs={epochs}", "--lr_decay_epochs=30,60,80", "--lr_decay=0.2"]
    status, out, _ = run(capsys, f"--method={method}", "--num_examples=50000", *flags, sizes)
    assert status == 0
    assert f"updates: {UPDATES['cifar10', 'resnet18'][method][640]}\n" in out


@pytest.mark.slow
def test_the_command_bounds_absa_and_tells_its_time_and_draws(capsys, tmp_path):
    flags = [
        "--method=absa",
        "--num_examples=50000",
        "--max_batch_size=640",
        f"--output={tmp_path / 'plan.png'}",
    ]
    status, out, _ = run(capsys, *flags, "--t_comp=0.036", "--t_comm=0.015", "--t_hess=1.15")
    assert status == 0
    assert "updates: 7780 to 11505\n" in out
    assert "measurements: 4 to 30\n" in out
    assert f"seconds: {7780 * 0.051 + 4 * 1.15:.1f} to {11505 * 0.051 + 30 * 1.15:.1f} (" in out
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.mark.slow
def test_times_can_be_measured_here(capsys):
    flags = ["--method=abs", "--num_examples=1280", "--epochs=2", "--batch_size=64", "--measure_times"]
    flags += ["--lr_decay_epochs="]
    status, out, err = run(capsys, *flags)
    assert (status, err) == (0, "")
    times = dict(part.split() for part in out.splitlines()[-1].split("(")[1].rstrip(")").split(", "))
    assert 0 < float(times["T_comp"]) < 10
    assert 0 < float(times["T_Hess"]) < 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "`num_examples` is required"),
        (["--num_examples=1000", "--batch_size=2000"], "must be at most the 1000 training examples, got 2000"),
        (
            ["--num_examples=1000", "--max_batch_size=1280"],
            "must be at most the 1000 training examples, got 1280",
        ),
        (["--num_examples=1000", "--max_batch_size=200"], "must be a multiple of batch_size=128"),
        (["--num_examples=1000", "--method=sgd"], "--method=sgd: it must be one of bl, fb, gg"),
        (["--num_examples=1000", "--patience=-1"], "`patience` must be at least 0, got -1"),
        (["--num_examples=1000", "--method=timer", "--patience=0"], "`patience` must be at least 1 epoch"),
        (["--num_examples=1000", "--method=fixed"], "`grow_epochs` must name the epochs after which"),
        (
            ["--num_examples=1000", "--method=abs", "--lr_coupling=log"],
            "it must be one of linear, sqrt, none",
        ),
        (["--num_examples=1000", "--remainder=lose"], "--remainder=lose: it must be one of drop, keep, fill"),
        (["--num_examples=1000", "--t_comp=-1"], "`t_comp` must be at least 0 seconds, got -1.0"),
        (
            ["--num_examples=1000", "--lr_decay_epochs=3,x"],
            "separated by commas must be given, got '3,x'",
        ),
        (["--num_examples=1000", "--epochs=0"], "`epochs` must be at least 1, got 0"),
        (["--num_examples=1000", "--output=/no/such/folder/plan.png"], "No such file or directory"),
        (["--no_such_flag=1"], "no_such_flag"),
    ],
)
def test_input_that_cannot_be_used_ends_in_one_line(capsys, flags, message):
    status, _, err = run(capsys, *flags)
    assert status == 2
    assert err.startswith("hessabs: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method=absa", "--threshold=9"],
            "`threshold` is read with method=stability, and not with method=absa",
        ),
        (["--method=abs", "--threshold=1.25"], "`threshold` is read"),  # its default, and given all the same
        (["--t_comm=1"], "`t_comm` is read with --t_comp; pass that too"),
        (["--model=c1"], "`model` is read with --measure_times; pass that too"),
        (["--validation_examples=9"], "`validation_examples` is read with --dataset or --measure_times; pass"),
        (["--dataset=digits"], "say how many training examples there are, got 1280 and digits: leave one out"),
    ],
)
def test_flags_that_nothing_reads_are_refused(capsys, flags, message):
    status, _, err = run(capsys, "--num_examples=1280", "--max_batch_size=256", *flags)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_examples_are_counted_by_the_name_of_the_set(capsys):
    flags = ["--method=bl", "--epochs=1", "--lr_decay_epochs="]
    status, out, _ = run(capsys, *flags, "--dataset=digits", "--validation_examples=200")
    assert status == 0
    assert f"updates of `hessabs train`: {(1437 - 200) // 128}\n" in out
    status, _, err = run(capsys, *flags, "--dataset=digits", "--validation_examples=1437")
    assert status == 2
    assert "`validation_examples` must lie in [0, 1436]" in err


def test_examples_of_text_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("some text, of a few letters. " * 20)
    settings = TaskSettings(
        dataset=f"text:{tmp_path / 'a.txt'}", sequence_length=8, model="char_transformer_small"
    )
    assert num_examples(settings) == len(make_named(settings).train)


def test_images_are_counted_unread(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the extra `data` is not installed")
    from tests.tfds_writer import write_dataset

    splits = {
        split: {"image": [np.zeros((4, 4, 3), np.uint8)] * number, "label": [0] * number}
        for split, number in (("train", 9), ("extra", 4), ("test", 2))
    }
    folder = write_dataset(tmp_path, "svhn_cropped", splits, shards=2)
    for path in folder.glob("*.array_record*"):
        path.unlink()
    settings = TaskSettings(dataset="svhn_cropped", data_dir=str(tmp_path))
    assert num_examples(settings) == 9
    assert num_examples(settings._replace(train_split="train+extra", validation_examples=3)) == 10
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(10):
            # the first one tells how many channels there are
            image = (ROOT / "docs/pictures/density.png").read_bytes() if name == "a" else b""
            (tmp_path / f"images/{name}/{number}.png").write_bytes(image)
    assert num_examples(TaskSettings(dataset=f"folder:{tmp_path / 'images'}")) == 16


def test_epochs_that_a_plan_does_not_reach_are_said(capsys):
    status, _, err = run(
        capsys, "--num_examples=1280", "--method=bl", "--epochs=40", "--lr_decay_epochs=30,40,80"
    )
    assert status == 0
    assert err == "hessabs: `lr_decay_epochs` 40,80: the run ends before, after epochs=40.\n"


def test_the_picture_has_the_rates_of_the_table(capsys, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "hessabs.cli.plan.draw_plans",
        lambda path, bounds, rates, title: drawn.update(enumerate(rates(bounds.most), 1)),
    )
    flags = ["--num_examples=1437", "--batch_size=32", "--epochs=5", "--schedule=linear", "--lr=0.1"]
    _, out, _ = run(capsys, "--method=bl", *flags, f"--output={tmp_path / 'p.png'}")
    rows = [line.split() for line in out.splitlines()[1:6]]
    np.testing.assert_allclose([drawn[int(row[0])] for row in rows], [float(row[2]) for row in rows], rtol=1e-4)
    # Each epoch of 1,437 examples ends with 29 of an update, and the rate falls to 0 at the last example.
    assert drawn[5] == pytest.approx(0.1 * 32 / (5 * 1437))
    assert drawn[1] == pytest.approx(0.1 * (1 - (1437 - 32) / (5 * 1437)))
