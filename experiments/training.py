"""All that the experiments ask of the training of hessabs: settings in, summary and records out."""

import functools
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from hessabs.batch_size import methods
from hessabs.curvature import last_layer_path
from hessabs.data import Source, eval_batches, subset
from hessabs.training import Durability, assemble, files, fit, load_trained
from hessabs.training.assemble import SETTINGS as GROUPS
from hessabs.training.assemble import Parts, read_rule
from hessabs.training.fields import declared
from hessabs.training.task import Task, attack_loss, evaluation_loss
from hessabs.training.tasks.named import TaskSettings, make_named
from hessabs.typing import LossFn, Params

SETTINGS = tuple(declared(*GROUPS))
CHECKPOINT_EVERY = "5min"
_RULES = {name for kind in methods.METHODS.values() for name in kind._fields}

make_task = functools.cache(make_named)  # decoding takes longer than an epoch of the MLP


def own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what the grid says for its other methods."""
    method = settings.get("method", "absa")
    others = _RULES - set(methods.METHODS[method]._fields)
    others |= {"adversarial_epochs"} if method == "bl" and not settings.get("adversarial_fraction") else set()
    kept = {name: value for name, value in settings.items() if name not in others}
    # The size of a perturbation is read where there is one.
    if (
        method != "absa"
        and not kept.get("adversarial_fraction")
        and kept.get("robust") in (None, "none", "sam")
    ):
        kept.pop("epsilon", None)
    return kept


def parts(settings: Mapping[str, Any], data_dir: str | None = None) -> Parts:
    """Make the parts of a run."""
    task = TaskSettings(**{name: settings[name] for name in TaskSettings._fields if name in settings})
    return assemble(own(settings), make_task(task._replace(data_dir=data_dir or task.data_dir)))


def train_one(
    settings: Mapping[str, Any], workdir: pathlib.Path, *, data_dir: str | None = None, resume: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a network; returns the summary, with every setting under its name, and the records by epoch.

    A run whose loss stops being finite is finished too: its summary says ``diverged`` and has chance accuracy.
    The trained params stay in the workdir; ``resume`` goes on from its last checkpoint.
    """
    made, started = parts(settings, data_dir), time.perf_counter()
    durability = Durability(resume=resume, checkpoint_every=CHECKPOINT_EVERY, keep_checkpoints=1)
    try:
        options = {**made.options, "workdir": workdir, "durability": durability, "overwrite": True}
        result = fit(made.task, made.optimizer, made.rule, **options)
        summary, records = result.summary, result.records
    except FloatingPointError as error:
        path = workdir / files.METRICS
        records = files.read_lines(path) if path.exists() else []
        seconds = time.perf_counter() - started
        resolved = {**made.options["settings"]._asdict(), **made.task.settings, **made.options["record"]}
        summary = {**resolved, **_diverged(records, resolved, made.task)}
        summary |= {"diverged": str(error), "seconds": seconds}
    shutil.rmtree(workdir / files.CHECKPOINTS, ignore_errors=True)
    return {name: value for name, value in summary.items() if name not in ("data_dir", "factories")}, records


def _diverged(records: list[dict[str, Any]], settings: Mapping[str, Any], task: Task) -> dict[str, Any]:
    last = records[-1] if records else {"updates": 0, "samples": 0, "batch_size": settings["batch_size"]}
    attacked = ("fgsm_accuracy", "pgd_accuracy") if settings["pgd_steps"] else ("fgsm_accuracy",)
    assert task.num_classes is not None
    return {
        "updates": last["updates"],  # at the end of the last whole epoch
        "samples": last["samples"],
        **dict.fromkeys(("test_accuracy", *attacked), 100 / task.num_classes),
        "final_batch_size": last["batch_size"],
        "eigenvalue": None,
    }


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting is out of its range, as far as that can be told without the data."""
    given = own(settings)
    read_rule({name: value for name, value in given.items() if name not in TaskSettings._fields}, 10**6)


def planned_updates(settings: Mapping[str, Any], num_examples: int) -> tuple[int, int]:
    """Plan a run: the fewest and the most updates, the same for a rule that measures nothing."""
    bounds = read_rule(own(settings), num_examples).plans()
    return bounds.fewest.updates, bounds.most.updates


class Trained(NamedTuple):
    """A trained network and its data."""

    params: Params
    loss_fn: LossFn  # in evaluation mode, of prepared batches
    attacked_loss_fn: LossFn  # the cross-entropy that an attack raises
    last_layer: str  # its path, as ``curvature.restrict`` takes it
    splits: dict[str, Source]  # "train", "test"
    num_classes: int


def trained(summary: Mapping[str, Any], workdir: pathlib.Path, data_dir: str | None) -> Trained:
    """Read the network that ``train_one`` has left in a workdir."""
    del summary
    task, params, model_state, _ = load_trained(workdir, flags={"data_dir": data_dir})
    assert task.num_classes is not None
    return Trained(
        params,
        evaluation_loss(task, model_state),
        attack_loss(task, model_state),
        last_layer_path(params, task.num_classes),
        {"train": task.train, "test": task.test},
        task.num_classes,
    )


def batches(split: Source, num_examples: int, size: int) -> list[Any]:
    """Cut the first examples of a split into batches of weight 1, images in [0, 1]; a last part is left out."""
    first = subset(split, np.arange(min(num_examples, len(split))))
    whole = [batch for batch in eval_batches(first, size) if batch["weight"].all()]
    return [{**batch, "image": jax.device_put(batch["image"]) / 255} for batch in whole]
