"""READMEs and pictures are made from the table of runs: those for which there is something to say or draw."""

import json

import pytest

from experiments import grid, overhead, pictures, report, table
from experiments.grid import Grid
from experiments.table import Run

COMMITTED = [grid.RESULTS / name for name in grid.names() if (grid.RESULTS / name / table.FILE).exists()]
CURVATURE = {
    "num_examples": 4000,
    "train": [3.0, 2.0],
    "test": [4.0, 1.0],
    "last_layer": [1.0],
    "image_0": [5.0, 0.0],
    "line_at": [-0.5, 0.0, 0.5],
    "line_train": [1.0, 0.5, 1.0],
    "line_test": [1.1, 0.6, 1.1],
}
ATTACKS = ("clean", "fgsm", "pgd")


def make(name, *, commit="c", measured=None, tracked=False, **summary):
    record = {"epoch": 1, "batch_size": 128, "lr": 0.1, "test_accuracy": 80.0, "eigenvalue": 3.0}
    norms = ({"gradient_norm": 0.1}, {"gradient_norm": 0.2}) if tracked else ({}, {})
    records = [{**record, **norms[0]}, {**record, "epoch": 2, "eigenvalue": None, **norms[1]}]
    seed = int(name.rpartition("seed")[2])
    summary = {"seed": seed, "commit": commit, "hardware": "h", "updates": 100, **summary}
    return Run(name, summary, records, measured or {})


def attacked(accuracy, top):
    return {
        "robustness": {
            "accuracy": dict.fromkeys(ATTACKS, accuracy),
            "eigenvalues": [top / i for i in range(1, 21)],
            "num_examples": 2000,
            "commit": "b",
        }
    }


def grouped(*runs):
    found = {run.name: run for run in runs}
    this = Grid("mine", "Mine.", {name: {} for name in found})
    return this, found, report.group(found, this)


def draw(folder, *runs):
    _, found, groups = grouped(*runs)
    return [name.removesuffix(".png") for name in pictures.draw(folder, groups, found)]


@pytest.mark.parametrize("results", COMMITTED, ids=lambda path: path.name)
def test_the_committed_page_is_that_of_the_table(results):
    this, runs = grid.load(grid.find([results.name])), table.read(results)
    page = (results / "README.md").read_text()
    drawn = [line[2:].partition("]")[0] + ".png" for line in page.splitlines() if line.startswith("![")]
    assert sorted(drawn) == sorted(path.name for path in results.glob("*.png"))
    assert page == report.describe(results, this, runs, report.group(runs, this), drawn)


@pytest.mark.slow
def test_draws_what_there_is(tmp_path):
    bl = make("bl_128/seed0", test_accuracy=90.0)
    other = make("bl_128/seed1", test_accuracy=90.0, commit="d")  # a group of its own
    assert draw(tmp_path, bl, other) == ["schedules", "curves"]
    measured = make("bl_640/seed0", test_accuracy=85.0, pgd_accuracy=60.0, measured={"curvature": CURVATURE})
    tracked = make("robust/seed0", tracked=True)
    model = make("plain/seed0", measured=attacked(80.0, 4.0))
    drawn = draw(tmp_path, bl, other, measured, tracked, model)
    every = ["schedules", "accuracy", "models", "tracked", "spectra", "block", "line", "single", "curves"]
    assert drawn == every
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_a_picture_shows_the_numbers_of_the_table():
    runs = [
        make("plain/seed0", measured=attacked(80.0, 4.0)),
        make("plain/seed1", measured=attacked(82.0, 6.0)),
    ]
    left, right = pictures._models({"plain": runs}).axes[:2]
    assert left.images[0].get_array().tolist() == [[81.0] * 3]
    assert [text.get_text() for text in left.texts] == ["81.0"] * 3
    assert list(right.lines[0].get_ydata())[:2] == [5.0, 2.5]


def test_the_table_of_eigenvalues_is_over_the_seeds_that_were_measured():
    this, runs, groups = grouped(make("bl_128/seed0"))
    assert report._spectra(this.name, groups, runs) == []
    measured = [
        make(f"bl_128/seed{seed}", measured={"curvature": {**CURVATURE, "train": [top, *range(19, 0, -1)]}})
        for seed, top in ((1, 10.0), (2, 14.0))
    ]
    this, runs, groups = grouped(make("bl_128/seed0"), *measured)
    lines = report._spectra(this.name, groups, runs)
    assert "| bl_128 | 1, 2 | 12 ± 2.83 | 16 | 1 | 4 | 1 |" in lines
    assert "first 4000 images" in lines[1]


def test_the_table_of_attacks_is_over_the_seeds_of_all_commits():
    this, runs, _ = grouped(
        make("plain/seed0", measured=attacked(80.0, 4.0)),
        make("plain/seed1", commit="d", measured=attacked(82.0, 6.0)),
        make("pgd/seed0", measured=attacked(85.5, 2.0)),
        make("free/seed0"),
    )
    lines = report._robustness(this, runs)
    assert "| trained with | seeds | clean | fgsm | pgd | eigenvalue 1 | eigenvalue 20 |" in lines
    assert "| plain | 0, 1 |" + " 81.00 ± 1.41 |" * 3 + " 5.00 ± 1.41 | 0.25 ± 0.07 |" in lines
    assert "| pgd | 0 |" + " 85.50 |" * 3 + " 2.00 | 0.10 |" in lines
    assert not any(line.startswith("| free") for line in lines)


def test_columns_are_read_from_the_names():
    _, _, groups = grouped(*(make(f"{name}/seed0") for name in ("bl_128", "absa_640", "timer")))
    assert {m: [c for c, _ in points] for m, points in pictures._by_method(groups).items()} == {
        "absa": [640],
        "bl": [128],
    }
    assert list(pictures._one_column({"bl_128": [], "absa_640": [], "timer": []})) == ["absa_640"]
    assert list(pictures._one_column({"a_64": [], "b_64": [], "a_640": []})) == ["a_64", "b_64"]
    assert list(pictures._one_column({"timer": []})) == ["timer"]


def test_the_time_table_is_that_of_the_slides():
    runs = {run.name: run for run in (make("bl_128/seed0", updates=1000), make("absa_16000/seed0"))}
    times = {"compute": 0.02, "adversarial": 0.03, "communicate": 0.01, "hessian": 1.0}
    # 1000 * 0.03 + 1 * 1.0 (the record has one measurement), and 100 * 0.04 + 1.0
    assert overhead.totals(times, runs) == [
        "| bl_128 | 1,000 | 1 | 31.0 | 1.00 x | 3.2 % |",
        "| absa_16000 | 100 | 1 | 5.0 | 6.20 x | 20.0 % |",
    ]


def test_the_committed_time_table_is_that_of_the_times_and_the_runs():
    folder = grid.RESULTS / "overhead"
    runs = table.read(grid.RESULTS / "fashion_mnist_mlp")
    page = overhead.describe(json.loads((folder / overhead.TIMES).read_text()), runs)
    assert page == (folder / "README.md").read_text()
    assert f"| {runs['absa_16000/seed0'].summary['updates']:,} | " in page


def test_the_page_of_the_soak_says_its_numbers():
    folder = grid.RESULTS / "soak"
    record, page = json.loads((folder / "soak.json").read_text()), (folder / "README.md").read_text()
    assert f"* {record['short_runs']} short runs, killed {record['kills']} times" in page
    assert f"{100 * record['long_run']['growth']:+.2f} %" in page
    assert record["commit"] in page
