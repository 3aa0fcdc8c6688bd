"""Whether a run that is to go on is the run that was saved."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from hessabs.data import Column
from hessabs.training.config import Config
from hessabs.training.setup import Run

_MAY_DIFFER = ("data_dir", "data_workers", "devices", "mesh")


def describe(run: Run) -> dict[str, Any]:
    """Say what a run is: its settings and its data.

    Args:
      run: What ``set_up`` made.

    Returns:
      A dictionary that JSON can hold.
    """
    labels = run.dataset.train["label"]
    content = labels.content() if isinstance(labels, Column) else np.ascontiguousarray(labels).tobytes()
    return {
        "config": {name: _plain(value) for name, value in run.config._asdict().items()},
        "data": {"training examples": len(labels), "labels": hashlib.sha256(content).hexdigest()[:16]},
    }


def refuse_contradictions(saved: Mapping[str, Any], run: Run) -> None:
    """Compare what was saved with a run that is to go on.

    All settings must be equal but ``data_dir``, for what lies there is compared instead, ``data_workers``, and
    the devices: on another number of them the result is the same to float tolerance. ``epochs`` may be more
    than were saved: no schedule depends on it but the end of the adversarial examples, where there are some,
    and that is a setting of its own. A setting that was not saved, by an older version, counts as its default.

    Args:
      saved: What ``describe`` returned when the run was saved; without "data", that is not compared.
      run: The run that is to go on.

    Raises:
      ValueError: If a setting contradicts what was saved, showing both values of each that does.
    """
    now = describe(run)
    old = {**{name: _plain(value) for name, value in Config._field_defaults.items()}, **dict(saved["config"])}
    wrong = [
        f"--{name} is {_shown(old.get(name))} in the checkpoint and {_shown(value)} now"
        for name, value in now["config"].items()
        if name not in _MAY_DIFFER
        and old.get(name) != value
        and not (name == "epochs" and value > old["epochs"])
        and not (name == "adversarial_epochs" and not run.config.adversarial_fraction)
    ]
    wrong += [
        f"the data's {name} are {saved['data'].get(name)} in the checkpoint and {value} now"
        for name, value in now["data"].items()
        if "data" in saved and saved["data"].get(name) != value
    ]
    if wrong:
        raise ValueError(
            f"This is not the run that was saved: {'; '.join(wrong)}. Its place in the data, its rule and its "
            "optimiser belong to what it began with: pass that, or begin a run of its own in another workdir."
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
