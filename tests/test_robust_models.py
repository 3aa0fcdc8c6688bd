"""The table of robust models: means over the seeds there are, and a line for each network."""

import csv

from experiments import robust_models


def measured(seed, accuracy, top):
    return {
        "accuracy": dict.fromkeys(robust_models.COLUMNS, accuracy),
        "eigenvalues": [top / i for i in range(1, 21)],
        "num_examples": 2000,
        "seed": seed,
        "trained_at": "a",
        "commit": "b",
        "hardware": "c",
    }


def test_table_and_picture(tmp_path, capsys):
    found = {"plain": [measured(0, 80.0, 4.0), measured(1, 82.0, 6.0)], "pgd": [measured(0, 85.5, 2.0)]}
    robust_models.write(tmp_path, found)
    lines = (tmp_path / "models.md").read_text().splitlines()
    assert "| plain | 0, 1 |" + " 81.00 ± 1.41 |" * 7 + " 5.00 ± 1.41 | 0.25 ± 0.07 |" in lines
    assert "| pgd | 0 |" + " 85.50 |" * 7 + " 2.00 | 0.10 |" in lines
    with (tmp_path / "models.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["seed"], float(row["pgd"]), float(row["eigenvalue_2"])) for row in rows] == [
        ("plain", "0", 80.0, 2.0),
        ("plain", "1", 82.0, 3.0),
        ("pgd", "0", 85.5, 1.0),
    ]
    assert (tmp_path / "models.png").stat().st_size > 10_000
    assert "plain" in capsys.readouterr().out
