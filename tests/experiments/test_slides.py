"""The tables of the slides: the copy is whole, and the committed plan is what the planner says."""

import csv

import pytest

from experiments import grid, slides


@pytest.fixture(scope="module")
def grids():
    """The configs that stand for a table of the slides."""
    return [grid.load(grid.find([name])) for name in slides.configs()]


def committed():
    with (slides.OUT / "planned.csv").open() as file:
        return [{**row, "largest_batch": int(row["largest_batch"])} for row in csv.DictReader(file)]


def test_the_copy_of_the_tables_is_whole():
    rows = slides.rows()
    assert len(rows) == 136
    assert {row.method for row in rows} == set(slides.METHODS)
    assert all(0 <= row.accuracy <= 100 and row.updates > 0 for row in rows)


@pytest.mark.slow
def test_every_config_of_the_slides_covers_every_row_of_its_table(grids):
    for this in grids:
        printed = {
            f"{row.method}_{row.largest_batch}"
            for row in slides.rows()
            if (row.dataset, row.network) == this.slides[:2]
        }
        assert printed <= set(this.labels), this.name


@pytest.mark.slow
def test_the_committed_plan_covers_every_run(grids):
    rows = committed()
    for this in grids:
        mine = [f"{row['method']}_{row['largest_batch']}" for row in rows if row["config"] == this.name]
        assert sorted(mine) == sorted(this.labels)


def test_where_the_plan_differs_from_the_slides():
    # Two misprints, one rounding, and a run of ABS that no patience of ten epochs explains; see
    # tests/batch_size/test_planner.py, which counts them on its own.
    differs = {
        (row["dataset"], row["method"], row["largest_batch"])
        for row in committed()
        if row["verdict"] == "differs"
    }
    assert differs == {
        ("svhn", "bl", 128),
        ("svhn", "gg", 2048),
        ("cifar10", "bl", 1024),
        ("cifar10", "abs", 16000),
    }


@pytest.mark.parametrize(
    ("config", "some"),
    [
        ("cifar10_resnet20", ("bl_640", "gg_3200", "absa_16000")),
        pytest.param("imagenet_alexnet", ("fb_16384", "abs_4096"), marks=pytest.mark.slow),
    ],
)
def test_the_committed_plan_is_the_planners(monkeypatch, config, some):
    load_whole = grid.load

    def few(path):
        this = load_whole(path)
        return this._replace(runs={name: run for name, run in this.runs.items() if name.split("/")[0] in some})

    monkeypatch.setattr(grid, "load", few)
    rows = {(row["config"], row["method"], row["largest_batch"]): row for row in committed()}
    got = slides.plan(config)
    assert len(got) == len(some)
    for row in got:
        want = rows[row.config, row.method, row.largest_batch]
        assert {name: str(value) for name, value in row._asdict().items()} == {
            name: str(want[name]) for name in row._fields
        }
        assert row.verdict == want["verdict"]


def test_refuses_a_config_that_is_no_table_of_the_slides():
    with pytest.raises(ValueError, match="hessian_worth stands for no table of the slides"):
        slides.plan("hessian_worth")


def test_the_committed_page_is_that_of_the_committed_plan(tmp_path):
    planned = [slides.Planned(*list(row.values())[:-1]) for row in committed()]
    counts = [name for name in slides.Planned._fields if name.endswith("updates")]
    planned = [
        row._replace(**{name: int(value) if (value := getattr(row, name)) else "" for name in counts})
        for row in planned
    ]
    slides.write(planned, tmp_path)
    for name in ("README.md", "planned.csv"):
        assert (tmp_path / name).read_text() == (slides.OUT / name).read_text()
