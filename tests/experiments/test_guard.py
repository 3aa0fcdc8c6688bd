"""The guard's experiment: one run of it, and its pages against its table."""

import re
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import grid, guard, table
from tests.experiments.test_numbers import VALUE

RESULTS = grid.RESULTS / guard.NAME


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["guard 1", "clip 1", "none"])
def test_a_run_trains_at_the_rate_that_it_says(monkeypatch, kind):
    monkeypatch.setattr(guard, "TRAINED", 64)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(size=(80, 28, 28, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=80), jnp.int32)
    splits = (images[:64], labels[:64]), (images[64:], labels[64:])
    guard.train.clear_cache()
    right, rates = guard.train(guard.Point("sgd", 32, kind), splits, jnp.float32(40.0), jax.random.key(0))
    guard.train.clear_cache()
    assert 0 <= right <= 1
    assert len(rates) == guard.EPOCHS * 2
    schedule = [40.0 * min((i + 1) / 2, (20 - i) / 18) for i in range(20)]
    if kind == "guard 1":
        assert all(rates < 0.5 * np.asarray(schedule))
    else:
        np.testing.assert_allclose(rates, schedule, rtol=1e-5)


def test_the_page_is_that_of_the_table():
    assert (RESULTS / "README.md").read_text() == guard.page(table.read(RESULTS))


def accuracies(optimizer, size, kind, factor):
    rate = float(f"{factor * guard.BEST[optimizer, size]:.3g}")
    runs, label = table.read(RESULTS), f"{optimizer}-b{size}-{kind}-lr{rate:g}"
    names = [f"{label}/seed{seed}" for seed in guard.SEEDS]
    return [runs[name].summary["held_out_accuracy"] for name in names if name in runs]


def test_the_table_of_the_page_on_worth():
    [lines] = re.findall(r"^\| optimiser \| batch \| no guard, .*\n\|[-|]+\n((?:\|.*\n)+)", VALUE, re.MULTILINE)
    columns = [("none", 1), ("none", 16), ("guard 2", 1), ("guard 2", 4), ("guard 2", 16), ("guard 1", 16)]
    names = {"SGD": "sgd", "AdamW": "adamw", "Muon": "muon"}
    shown = 0
    for line in lines.splitlines():
        optimizer, size, *cells = (part.strip() for part in line.split("|")[1:-1])
        for (kind, factor), cell in zip(columns, cells, strict=True):
            values = accuracies(names[optimizer], int(size.replace(",", "")), kind, factor)
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            assert cell == f"{statistics.mean(values):.2f}{spread}", (line, kind, factor)
            shown += 1
    assert shown == 6 * len(guard.BEST)


def test_what_the_text_says_of_the_guard():
    def mean(point, kind, factor):
        return statistics.mean(accuracies(*point, kind, factor))

    far = sorted(mean(point, "none", 16) for point in guard.BEST)
    assert [value < 11 for value in far].count(True) == 4
    assert (f"{far[4]:.0f}", f"{far[7]:.0f}") == ("26", "62")
    assert far[8] == mean(("adamw", 128), "none", 16) > 80
    costs = [mean(point, "none", 1) - mean(point, "guard 2", 1) for point in guard.BEST]
    assert f"{max(costs):.2f}" == "0.12"
    large = [("sgd", 2048), ("sgd", 16384), ("adamw", 2048), ("adamw", 16384), ("muon", 16384)]
    lost = {point: mean(point, "none", 1) - mean(point, "guard 2", 16) for point in guard.BEST}
    assert f"{max(lost[point] for point in large):.1f}" == "1.1"
    rest = [value for point, value in lost.items() if point not in large]
    assert (f"{min(rest):.1f}", f"{max(rest):.1f}") == ("2.9", "7.1")
    assert f"{max(mean(p, 'none', 1) - mean(p, 'guard 1', 16) for p in guard.BEST):.1f}" == "2.7"
    greedy = [mean(p, "none", 1) - mean(p, "guard 1", 1) for p in (large[0], large[2], large[4])]
    assert (f"{min(greedy):.1f}", f"{max(greedy):.1f}") == ("1.5", "3.0")


def test_what_the_text_says_of_growth_with_a_guard():
    found = table.read(grid.RESULTS / "guarded_growth")
    text = " ".join(VALUE.split())
    for label, shown in (("sgd_1024", "88.30 ± 0.29"), ("ramp_1024", "87.79")):
        values = [run.summary["validation_accuracy"] for run in found.values() if run.label == label]
        assert f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}".startswith(shown)
        assert shown in text
