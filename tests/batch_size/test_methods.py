"""The rules by name, and `hessabs plan`."""

import pytest

from hessabs import cli
from hessabs.batch_size import methods
from hessabs.batch_size.methods import METHODS, READ_BY, Settings, make_controller, make_plans, per_epoch
from hessabs.batch_size.picture import draw_plans
from tests.batch_size.slides import SETTINGS, UPDATES


def run(capsys, *flags):
    status = cli.main(["plan", *flags])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_rule_and_a_plan(method):
    settings = Settings(method=method, num_examples=1280, epochs=12, batch_size=64, max_batch_size=256)
    settings = settings._replace(lr_decay_epochs=(4, 8), patience=3, cycle_epochs=4, warmup_epochs=2)
    settings = settings._replace(grow_epochs=(2, 3))
    bounds = make_plans(settings)
    assert len(bounds.most.epochs) == 12
    measured = method in ("abs", "absa", "gns", "norm_test", "stability")
    assert (bounds.fewest.updates < bounds.most.updates) == measured
    assert (make_controller(settings).measures != "nothing") == measured


@pytest.mark.parametrize("method", ["bl", "fb", "gg"])
def test_the_command_counts_as_the_slides_do(capsys, method):
    setting = SETTINGS["cifar10", "resnet18"]
    for largest, updates in UPDATES["cifar10", "resnet18"][method].items():
        sizes = (
            [f"--batch_size={largest}"]
            if method == "bl"
            else ["--batch_size=128", f"--max_batch_size={largest}"]
        )
        flags = [
            "--num_examples=50000",
            f"--epochs={setting.epochs}",
            "--lr_decay_epochs=30,60,80",
            "--lr_decay=0.2",
        ]
        status, out, _ = run(capsys, f"--method={method}", *flags, *sizes)
        assert status == 0
        assert f"updates: {updates}\n" in out


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
        (["--num_examples=1000", "--batch_size=2000"], "must lie in [1, num_examples=1000], got 2000"),
        (["--num_examples=1000", "--max_batch_size=1280"], "must not exceed the data set, got 1280 of 1000"),
        (["--num_examples=1000", "--max_batch_size=200"], "must be a multiple of batch_size=128"),
        (["--num_examples=1000", "--method=sgd"], "`method` must be one of bl, fb, gg"),
        (["--num_examples=1000", "--patience=-1"], "`patience` must be at least 0, got -1"),
        (["--num_examples=1000", "--method=timer", "--patience=0"], "`patience` must be at least 1 epoch"),
        (["--num_examples=1000", "--method=fixed"], "`grow_epochs` must name the epochs after which"),
        (["--num_examples=1000", "--method=abs", "--lr_coupling=log"], "`lr_coupling` must be one of"),
        (["--num_examples=1000", "--remainder=lose"], "`remainder` must be one of"),
        (["--num_examples=1000", "--t_comp=-1"], "`compute` must be at least 0 seconds, got -1.0"),
        (["--num_examples=1000", "--lr_decay_epochs=3,x"], "whole numbers separated by commas, got '3,x'"),
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


def test_the_picture_has_a_line_for_each_bound():
    settings = Settings(method="abs", num_examples=1280, epochs=12, batch_size=64, max_batch_size=256)
    figure = draw_plans(make_plans(settings), settings.lr, "abs")
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2]
    figure = draw_plans(make_plans(settings._replace(method="bl")), settings.lr, "bl")
    assert [len(axes.get_lines()) for axes in figure.axes] == [1, 1]


def test_examples_of_an_epoch_follow_the_slides():
    assert per_epoch(Settings(method="bl", num_examples=50_000)) == 50_000
    assert per_epoch(Settings(method="gg", num_examples=50_000)) == 49_920
    assert per_epoch(Settings(method="gg", num_examples=50_000, remainder="keep")) == 50_000


def test_a_fixed_schedule_and_its_coupling():
    base = Settings(
        method="fixed", num_examples=1280, epochs=6, batch_size=64, max_batch_size=256, grow_epochs=(2, 3)
    )
    for coupling, scales in ((None, [1, 1, 2, 4, 4, 4]), ("sqrt", [1, 1, 2**0.5, 2, 2, 2]), ("none", [1] * 6)):
        rows = make_plans(base._replace(lr_coupling=coupling, lr_decay_epochs=())).most.epochs
        # A row of the plan is the end of an epoch: the growth of its last example is the next one's.
        assert [row.batch_size for row in rows] == [64, 64, 128, 256, 256, 256]
        assert [float(row.lr_scale) for row in rows] == pytest.approx(scales)


RULES = (
    "constant",
    "linear_scaling",
    "batch_growth",
    "hessian_adaptive",
    "cyclical",
    "gradient_noise_scale",
    "norm_test",
    "stability_limited",
    "timer",
    "fixed_growth",
)
OTHER = {
    "max_batch_size": 512,
    "growth_factor": 3.0,
    "grow_epochs": (4,),
    "lr_coupling": "sqrt",
    "warmup_epochs": 3,
    "cycle_epochs": 6,
    "measure_every": 77,
    "eigenvalue_decrease": 5.0,
    "patience": 7,
    "threshold": 2.0,
    "noise_scale": 2.0,
    "tolerance": 2.0,
    "fraction_decrease": 4.0,
}


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_reads_is_what_reaches_its_rule(method, monkeypatch):
    for rule in RULES:
        monkeypatch.setattr(methods, rule, lambda *args, rule=rule, **options: (rule, args, options))
    settings = Settings(method=method, num_examples=1280, batch_size=64, max_batch_size=256, grow_epochs=(2,))
    settings = settings._replace(adversarial_fraction=0.5)
    before = make_controller(settings)
    for name, value in OTHER.items():
        changes = make_controller(settings._replace(**{name: value})) != before
        assert changes == (method in READ_BY[name]), name
    assert set(OTHER) == set(READ_BY)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--method=absa", "--threshold=9"],
            "`threshold` is read with method=stability, and not with method=absa",
        ),
        (["--method=abs", "--threshold=1.25"], "`threshold` is read"),  # its default, and given all the same
        (["--t_comm=1"], "`t_comm` is read with --t_comp alone"),
        (["--model=c1"], "`model` is read with --measure_times alone"),
    ],
)
def test_flags_that_nothing_reads_are_refused(capsys, flags, message):
    status, _, err = run(capsys, "--num_examples=1280", "--max_batch_size=256", *flags)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_epochs_that_a_plan_does_not_reach_are_said(capsys):
    status, _, err = run(
        capsys, "--num_examples=1280", "--method=bl", "--epochs=40", "--lr_decay_epochs=30,40,80"
    )
    assert status == 0
    assert err == "hessabs: `lr_decay_epochs` 40,80: the run ends before, after epochs=40.\n"
