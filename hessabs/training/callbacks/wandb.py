"""Weights & Biases, where it is installed."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from hessabs.training.callbacks.protocol import Callback, scalars


def wandb(workdir: pathlib.Path) -> Callback:
    """Log a run to Weights & Biases, its horizontal axis the examples; the environment of ``wandb`` holds.

    Where a run goes on, so does that of Weights & Biases, whose name is in ``workdir/wandb.json``. It cannot
    forget, but what a run tells again is the same: it is left out up to what was logged.
    """
    try:
        import wandb as package
    except ImportError as error:
        raise ImportError("The callback wandb needs Weights & Biases: pip install wandb.") from error
    path, logged = workdir / "wandb.json", [-1]
    runs: list[Any] = []

    def start(record: Mapping[str, Any]) -> None:
        goes_on = record["samples"] and path.exists()
        name = str(json.loads(path.read_text())["id"]) if goes_on else None
        run = package.init(
            dir=str(workdir), id=name, resume="allow" if name else None, config=dict(record["settings"])
        )
        run.define_metric("*", step_metric="samples")
        path.write_text(json.dumps({"id": run.id}) + "\n")
        runs[:], logged[:] = [run], [run.summary.get("samples", -1) if name else -1]

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event == "start":
            start(record)
        elif event == "end":
            runs[0].summary.update(dict(record))
            runs.pop().finish()
        elif record["samples"] > logged[0]:
            prefix = "decision/" if event == "decision" else ""
            runs[0].log({**dict(scalars(record, prefix)), "samples": record["samples"]})

    return callback
