"""The records of the epochs as a CSV file."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from hessabs.training import files
from hessabs.training.callbacks.protocol import Callback


def csv(workdir: pathlib.Path) -> Callback:
    """Write ``metrics.csv``: a line for each epoch. At the start it becomes that of the epochs so far."""
    rows: list[dict[str, Any]] = []

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event in ("start", "epoch"):
            if event == "start":
                rows.clear()
            records = record["records"] if event == "start" else [record]
            rows.extend({name: _cell(value) for name, value in each.items()} for each in records)
            # Whole, so that a kill leaves no half a line, and a new column has a place.
            files.write_csv(workdir / "metrics.csv", rows)

    return callback


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value)
    return "" if isinstance(value, float) and not math.isfinite(value) else value  # as of a run that goes on
