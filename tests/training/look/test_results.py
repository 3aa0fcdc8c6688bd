"""Groups of runs: mean and spread are those of the statistics module, commits are never mixed."""

import json
import math
import statistics

import pytest

from hessabs.training.look import results

ACCURACIES = {0: 90.0, 1: 91.5, 2: 92.0}


@pytest.fixture
def root(tmp_path):
    def write(name, **summary):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").write_text(json.dumps(summary))

    for seed, accuracy in ACCURACIES.items():
        write(f"bl_128/seed{seed}", seed=seed, test_accuracy=accuracy, updates=1000, commit="a" * 40)
    write("fb/seed0", seed=0, test_accuracy=80.0, updates=10, commit="a" * 40, eigenvalue=None)
    write("fb/seed1", seed=1, test_accuracy=10.0, updates=10, commit="b" * 40, diverged="at once")
    write("deep/er/run", seed=7, test_accuracy=50.0)
    return tmp_path


def test_labels(root):
    groups = results.group(results.find(root))
    assert [g.name for g in groups] == ["bl_128", "deep/er/run", "fb @ aaaaaaaa", "fb @ bbbbbbbb"]
    assert [g.seeds for g in groups] == [[0, 1, 2], [7], [0], [1]]
    assert [g.diverged for g in groups] == [0, 0, 0, 1]


def test_a_single_workdir_has_its_own_name(root):
    (run,) = results.find(root / "deep/er/run")
    assert run.label == "run"


def test_table(root):
    rows = results.table(results.group(results.find(root)))
    mean, spread = statistics.mean(ACCURACIES.values()), statistics.stdev(ACCURACIES.values())
    assert rows[0] == ["run", "seeds", "test %", "updates"]  # nothing else has a number
    assert rows[1] == ["bl_128", "0, 1, 2", f"{mean:.2f} ± {spread:.2f}", "1,000"]
    assert rows[2] == ["deep/er/run", "7", "50.00", "-"]
    assert rows[4] == ["fb @ bbbbbbbb", "1 (1 diverged)", "10.00", "10"]
    lines = results.markdown(rows)
    assert len(lines) == len(rows) + 1
    assert len({line.count("|") for line in lines}) == 1


def test_an_average_of_the_params_has_columns_of_its_own(tmp_path):
    summary = {"test_accuracy": 80.0, "ema_test_accuracy": 90.0, "ema_test_loss": 0.5, "updates": 3}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    head, row = results.table(results.group(results.find(tmp_path)))
    assert head[2:] == ["test %", "test %, EMA", "updates"]  # losses are of runs without an accuracy
    assert row[2:] == ["80.00", "90.00", "3"]
    text = dict.fromkeys(("test_loss", "ema_test_loss"), 1.5)
    assert "| test loss | test loss, EMA |" in results.summary_table({"a": text})


@pytest.mark.parametrize(("text", "message"), [("{", "Expecting"), ("[1]", "must hold an object, got list")])
def test_leaves_out_what_is_no_summary_and_says_so(root, capsys, text, message):
    labels = [run.label for run in results.find(root)]
    assert capsys.readouterr().err == ""
    (root / "broken").mkdir()
    (root / "broken" / "summary.json").write_text(text)
    assert [run.label for run in results.find(root)] == labels
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hessabs: {root / 'broken'} is left out")
    assert message in line
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        results.find(root / "broken")


def test_refuses_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        results.find(tmp_path)


ROW = {
    "test_accuracy": 90.126,
    "fgsm_accuracy": 5.0,
    "updates": 1_234_567,
    "final_batch_size": 16_384,
    "eigenvalue": 0.000123456,
    "seconds": 12.34,
    "seconds_compile": 3.21,
    "other": "ignored",
}


@pytest.mark.parametrize("eigenvalue", [1.0, 123456.0, -2.5, math.nan])
def test_all_lines_of_a_summary_have_one_width(eigenvalue):
    other = {**ROW, "eigenvalue": eigenvalue, "updates": 1}
    text = results.summary_table({"a": ROW, "a much longer name": other})
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in lines}) == 1


def test_numbers_of_a_summary():
    def cells(**changes):
        head, _, row = results.summary_table({"a": {**ROW, **changes}}).splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, row)]

    assert cells()[1] == ["a", "90.13", "5.00", "1,234,567", "16,384", "0.000123", "12.3", "3.2"]
    assert cells(fgsm_accuracy=None)[0] == cells()[0][:2] + cells()[0][3:]  # a task that is not attacked


def test_runs_of_other_settings_are_no_seeds_of_one(tmp_path):
    for seed, epochs in ((0, 10), (1, 90), (2, 90)):
        folder = tmp_path / f"bl/seed{seed}"
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(
            json.dumps({"seed": seed, "epochs": epochs, "updates": 10 * epochs})
        )
    groups = results.group(results.find(tmp_path))
    assert [(g.name, g.seeds) for g in groups] == [("bl, epochs=10", [0]), ("bl, epochs=90", [1, 2])]


def test_a_run_that_has_not_finished_is_named(root):
    (root / "broken").mkdir()
    (root / "broken/config.json").write_text("{}")
    said = []
    assert len(results.find(root, said.append)) == 6
    assert said == [f"{root / 'broken'} is left out, for its run has not finished."]
