"""The table: aligned, also for several runs and numbers that are missing."""

import math

import pytest

from hessabs.training.reports.report import table

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
def test_all_lines_have_one_width(eigenvalue):
    text = table({"a": ROW, "a much longer name": {**ROW, "eigenvalue": eigenvalue, "updates": 1}})
    lines = text.splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert len({tuple(i for i, c in enumerate(line) if c == "|") for line in lines}) == 1


def test_numbers():
    cells = [cell.strip() for cell in table({"a": ROW}).splitlines()[2].strip("|").split("|")]
    assert cells == ["a", "90.13", "5.00", "1,234,567", "16,384", "0.000123", "12.3", "3.2"]


def test_refuses_a_summary_without_a_field():
    with pytest.raises(KeyError, match="updates"):
        table({"a": {k: v for k, v in ROW.items() if k != "updates"}})
