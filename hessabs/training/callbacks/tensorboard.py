"""Event files for TensorBoard, without TensorFlow."""

import pathlib
from collections.abc import Mapping
from typing import Any

from hessabs.training.callbacks.protocol import Callback, scalars


def tensorboard(workdir: pathlib.Path) -> Callback:
    """Write event files into ``workdir/tensorboard``; a step is an example.

    Where a run goes on, TensorBoard is told to forget what came after that: it will be told again.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "The callback tensorboard needs tensorboardX: install the extra `hessabs[train]`."
        ) from error
    writers: list[Any] = []

    def callback(event: str, record: Mapping[str, Any]) -> None:
        if event == "start":
            samples = record["samples"]
            options = {"purge_step": samples + 1 if samples else 0, "flush_secs": 1}
            suffix = f".{samples}"  # two of one second are two files
            writers[:] = [SummaryWriter(str(workdir / "tensorboard"), filename_suffix=suffix, **options)]
        elif event == "end":
            writers.pop().close()
        else:
            prefix = "decision/" if event == "decision" else ""
            for name, value in scalars(record, prefix):
                writers[0].add_scalar(name, value, record["samples"])

    return callback
