"""The search of the frontier: rates are bracketed, the choice gets the other seeds, rules take its rate."""

import math
import shutil

import pytest

from experiments import grid, table, training
from experiments.frontier import advice, report, search
from experiments.frontier.problems import PROBLEMS, Point, points, rate, settings
from experiments.table import Run

PROBLEM = PROBLEMS["mlp"]._replace(lr={"sgd": 0.2}, batches=(128, 512), budgets=(10,), rule_budgets=(10,))


def finished(name: str, **summary: object) -> Run:
    seed = int(name.rpartition("seed")[2])
    result = {"updates": 10, "samples": 1000, "hardware": "none", "test_accuracy": 80.0, **summary}
    return Run(name, {**result, "seed": seed, "commit": "0" * 40}, [], {})


def run_all(problem, metric):
    """Do what is wanted until nothing is, the metric a function of the settings."""
    runs = {}
    for _ in range(1000):
        wanted = next(search.wanted(problem, runs), None)
        if wanted is None:
            return runs
        value = metric(wanted.settings)
        summary = {"diverged": "loss"} if value is None else {problem.metric: value}
        runs[wanted.name] = finished(wanted.name, **summary)
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("factor", [1.0, 8.0, 1 / 16])
def test_the_best_rate_is_found_wherever_it_lies_and_has_worse_ones_on_both_sides(factor):
    def metric(run):
        best = factor * 0.2 * math.sqrt(run["batch_size"] / 512)
        away = math.log2(run["lr"] / best)
        return None if away > 2.5 else 90 - away**2

    runs = run_all(PROBLEM, metric)
    assert {search.chosen(PROBLEM, p, {}) for p in points(PROBLEM) if p.optimizer == "prodigy"} == {1.0}
    for point in points(PROBLEM._replace(untuned=())):
        lr = search.chosen(PROBLEM, point, runs)
        assert lr == pytest.approx(factor * 0.2 * math.sqrt(point.batch_size / 512), rel=0.01)
    for batch in PROBLEM.batches:
        values = search.tried(PROBLEM, Point("sgd", batch, 10), runs)
        best = max(values, key=values.get)
        assert {best - 1, best + 1} <= values.keys()


def test_every_choice_and_every_rule_gets_all_seeds_and_others_one():
    runs = run_all(PROBLEM, lambda run: 90 - abs(math.log2(run["lr"])))
    for place in search.places(PROBLEM, runs):
        assert [run.summary["seed"] for run in place.runs] == [0, 1, 2]
    chosen = {run.name for place in search.places(PROBLEM, runs) for run in place.runs}
    assert {name.rpartition("/")[2] for name in runs.keys() - chosen} == {"seed0"}


def test_a_rule_waits_for_the_rate_of_its_first_batch():
    wanted = [run.name for run in search.wanted(PROBLEM, {})]
    assert wanted
    assert not any("abs" in name for name in wanted)


LIKE_ANOTHER = {"mlp_clean": pytest.mark.slow}


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=LIKE_ANOTHER.get(name, ())) for name in PROBLEMS])
def test_every_run_is_one_that_can_be_trained(name):
    problem = PROBLEMS[name]
    for point in points(problem):
        lr = search.chosen(problem, point, {}) or rate(problem, point, 0)
        training.check(settings(problem, point, lr, 0))


@pytest.mark.slow
def test_the_report_says_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(PROBLEMS, "mlp", PROBLEM)
    runs = run_all(PROBLEM, lambda run: 89.5 - abs(math.log2(run["lr"])))
    monkeypatch.setattr(report.table, "read", lambda path: runs)
    text = report.write("mlp", tmp_path)
    assert "| sgd | 512 | 10 | 0.8 | 3 | 10 | 1,000 | 89.18 | 80.00 |" in text
    assert "| sgd | stability_sqrt | 128 | 10 | 0.8 |" in text
    assert (tmp_path / "updates_to_target.png").exists() is False  # nothing reaches 90
    assert (tmp_path / "metric_by_updates.png").exists()


@pytest.mark.parametrize(
    "path", sorted(grid.RESULTS.glob(f"frontier_*/{table.FILE}")), ids=lambda p: p.parent.name
)
def test_the_committed_page_is_that_of_the_table_and_runs_say_where_they_come_from(path, tmp_path):
    name = path.parent.name.removeprefix("frontier_")
    for source in (path, path.parent / report.FINDINGS):
        if source.exists():
            shutil.copy(source, tmp_path)
    report.write(name, tmp_path)
    assert (path.parent / "README.md").read_text() == (tmp_path / "README.md").read_text()
    for run in table.read(path.parent).values():
        assert run.summary["command"] == f"python -m experiments.frontier.run {name}"
        assert (len(run.commit), bool(run.summary["hardware"])) == (40, True)


def test_the_page_of_the_advice_is_that_of_its_runs():
    assert (grid.RESULTS / "advice/README.md").read_text() == advice.page(grid.RESULTS / "advice")


def test_the_fewest_updates_of_a_front_lie_between_its_batches_on_a_logarithmic_scale():
    front = [(100.0, 88.0), (400.0, 90.0), (1600.0, 89.0)]
    assert advice.fewest(PROBLEMS["mlp"], front, 89.0) == pytest.approx(200)
    assert advice.fewest(PROBLEMS["mlp"], front, 87.0) == 100
    assert advice.fewest(PROBLEMS["mlp"], front, 90.1) is None
    assert advice.fewest(PROBLEMS["text"], [(100.0, 1.6), (400.0, 1.4)], 1.5) == pytest.approx(200)
