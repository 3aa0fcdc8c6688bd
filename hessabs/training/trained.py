"""A trained run, read back: its task and its params; no optimiser, no rule, no objective."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from hessabs.data import fingerprint
from hessabs.training.files import CONFIG, SUMMARY, say
from hessabs.training.network import load_network
from hessabs.training.task import Task
from hessabs.training.tasks.named import recorded_task
from hessabs.typing import Params


class Trained(NamedTuple):
    """A network that a run left."""

    task: Task
    params: Params
    model_state: Any
    record: Mapping[str, Any]  # of ``config.json``


def load_trained(
    workdir: str | pathlib.Path,
    task: Task | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    average: bool = False,
) -> Trained:
    """Read the network of a finished run.

    Args:
      workdir: The folder of the run.
      task: What was learnt; None makes it again from what the folder recorded and ``flags``.
      flags: Settings of the task that were named now, by the fields of ``TaskSettings``.
      average: Whether the moving average of the params is wanted.

    Raises:
      FileNotFoundError: If the folder holds no finished run.
      ValueError: If it is damaged, holds another network, or its task has to be named.
    """
    folder = pathlib.Path(workdir)
    if not (folder / SUMMARY).is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished run ({SUMMARY} is missing): train one there first."
        )
    record = read_config(folder)
    if task is None:
        task, lines = recorded_task(folder, record, flags or {})
        named = {name for name, value in (flags or {}).items() if value is not None} & {"task", "dataset"}
        for line in [*lines, *(_other_classes if named else _other_data)(folder, record, task)]:
            say(line)
    params, model_state = jax.eval_shape(task.init, jax.random.key(0))
    names = ("average", "average_state") if average else ("params", "model_state")
    network = load_network(folder, dict(zip(names, (params, model_state), strict=True)))
    return Trained(task, network[names[0]], network[names[1]], record)


def _other_classes(folder: pathlib.Path, record: Mapping[str, Any], task: Task) -> list[str]:
    """Compare the class names of a run with those of data named now; a ValueError: one means another output."""
    seen, now = record.get("data", {}).get("classes"), task.class_names
    if not seen or not now or list(seen) == list(now):
        return []
    moved = sorted(name for name in {*seen} & {*now} if seen.index(name) != list(now).index(name))
    if moved:
        raise ValueError(
            f"The classes of {task.name} lie elsewhere than those of the run in {folder}, and it would be "
            f"judged by wrong labels: {', '.join(moved)} of {list(now)}, where the run has {list(seen)}. Give "
            "the data the classes of the run."
        )
    return [f"The classes of {task.name} are called {list(now)}, and those of the run {list(seen)}."]


def _other_data(folder: pathlib.Path, record: Mapping[str, Any], task: Task) -> list[str]:
    """Compare the data that a run was made of with those of the same name now; a ValueError: other classes."""
    seen = record.get("data", {})
    classes = None if task.class_names is None else list(task.class_names)
    if seen.get("classes") and classes and seen["classes"] != classes:
        gone, new = set(seen["classes"]) - set(classes), set(classes) - set(seen["classes"])
        raise ValueError(
            f"The classes of the data of {folder} are others now, and its outputs would have wrong names: gone "
            f"are {sorted(gone)}, new are {sorted(new)}. Restore their names, or name the data with --dataset."
        )
    if task.settings.get("text") or "digest" not in seen or seen["digest"] == fingerprint(task.train):
        return []  # of text there is a line already
    return [f"The training examples of {task.name} are not those that the run in {folder} saw."]


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """Read what a run recorded of itself."""
    path = workdir / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: train the run with this version of hessabs.")
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ValueError(f"{path} is damaged: it holds no settings.")
    return record
