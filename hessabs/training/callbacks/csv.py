"""The records of the epochs as a CSV file."""

import csv as csv_format
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from hessabs.training.callbacks.protocol import Callback


def csv(workdir: pathlib.Path) -> Callback:
    """Write ``metrics.csv``: a line for each epoch. At the start it becomes that of the epochs so far."""
    path = workdir / "metrics.csv"
    rows: list[Mapping[str, Any]] = []

    def write() -> None:
        partial = path.with_suffix(".csv.partial")
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with partial.open("w", newline="") as file:
            writer = csv_format.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
        partial.replace(path)

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event == "start":
            rows[:] = record["records"]
            write()
        elif event == "epoch":
            rows.append(record)
            write()  # whole, so that a kill leaves no half a line, and a new column has a place

    return callback


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value)
    return "" if isinstance(value, float) and not math.isfinite(value) else value  # as of a run that goes on
