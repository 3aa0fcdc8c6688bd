"""Configs: each committed one is whole, and what a config cannot mean is refused by name."""

import pathlib

import pytest

from experiments import grid

CONFIGS = sorted(grid.CONFIGS.glob("*.py"))


def write(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_committed_config_is_whole(path):
    this = grid.load(path)
    assert (this.name, len(this.runs) > 0) == (path.stem, True)
    assert f"experiments/run.py {path.stem}" in path.read_text()  # the docstring is the command
    assert this.title.endswith(".")
    for name, settings in this.runs.items():
        assert name.endswith(f"/seed{settings['seed']}")


def test_the_table_of_the_slides():
    runs = grid.load(grid.find(["fashion_mnist_mlp"])).runs
    assert len(runs) == 78
    for column in (640, 3200, 5120, 10240, 16000):
        assert runs[f"bl_{column}/seed1"]["batch_size"] == column
        for method in ("fb", "gg", "abs", "absa"):
            settings = runs[f"{method}_{column}/seed2"]
            assert (settings["method"], settings["max_batch_size"]) == (method, column)
            assert "batch_size" not in settings  # the first batch is the default, 128
    assert list(runs)[:2] == ["bl_128/seed0", "bl_640/seed0"]  # a whole seed before the next
    assert {settings["seed"] for settings in runs.values()} == {0, 1, 2}


def test_a_config_of_ones_own(tmp_path):
    path = write(
        tmp_path, '"""Mine."""\n_ROWS = 2\nSEEDS = (4,)\nBASE = {"epochs": _ROWS}\nGRID = {"a": {"lr": 0.5}}\n'
    )
    this = grid.load(grid.find([str(path)]))
    assert (this.name, this.title, list(this.runs)) == ("mine", "Mine.", ["a/seed4"])
    assert this.runs["a/seed4"] == {"epochs": 2, "lr": 0.5, "seed": 4}


ONE = "SEEDS = (0,)\nBASE = {}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            ONE + "GRID = {'a': {'patince': 3}}",
            "'a' has the unknown setting 'patince'; did you mean 'patience'",
        ),
        ("SEEDS = (0,)\nBASE = {'zzz': 1}\nGRID = {'a': {}}", "unknown setting 'zzz'; known are task, "),
        (ONE + "GRID = {'a': {'lr': -1.0}}", "'a': `lr` must be positive and finite, got -1.0"),
        (ONE + "GRIDS = {}", "unknown name 'GRIDS'; did you mean 'GRID'"),
        (ONE, "mine.py must define GRID"),
        ("SEEDS = (1, 1)\nBASE = {}\nGRID = {}", r"one or more different seeds, got \(1, 1\)"),
    ],
)
def test_refusals(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        grid.load(write(tmp_path, text))


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["fashion_mnist_mlp", "more"], ["nonsense.py"]])
def test_names_the_configs_there_are(arguments):
    with pytest.raises(ValueError, match=r"one of .*fashion_mnist_mlp"):
        grid.find(arguments)


def test_paths_are_relative_to_the_repository():
    assert pathlib.Path("experiments/configs").resolve() == grid.CONFIGS.resolve()
