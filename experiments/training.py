"""All that the experiments ask of the training of hessabs: settings in, summary and records out."""

import functools
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from hessabs.training.losses import evaluation_logits, evaluation_loss, scale_images
from hessabs.training.saving import checkpoint
from hessabs.training.saving.durability import Durability
from hessabs.training.setup import init_model
from hessabs.training.track import last_layer

from hessabs import data, models
from hessabs.attacks import losses
from hessabs.batch_size import methods
from hessabs.training import Config, config, metrics, set_up, train
from hessabs.typing import LossFn, Params

SETTINGS = Config._fields
CHECKPOINT_EVERY = "5min"

load = functools.cache(data.load)  # decoding takes longer than an epoch of the MLP


def train_one(
    settings: Mapping[str, Any], workdir: pathlib.Path, *, data_dir: str | None = None, resume: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train a network; returns the summary, with every setting under its name, and the records by epoch.

    A run whose loss stops being finite is finished too: its summary says ``diverged`` and has chance accuracy.
    The trained params stay in the workdir; ``resume`` goes on from its last checkpoint.
    """
    this = Config(**settings)
    dataset = load(this.dataset, data_dir=data_dir, train_split=this.train_split, image_size=this.image_size)
    started, run = time.perf_counter(), set_up(this, dataset)
    try:
        options = Durability(resume=resume, checkpoint_every=CHECKPOINT_EVERY, keep_checkpoints=1)
        result = train(run, workdir, options)
        summary, records = result.summary, result.records
    except FloatingPointError as error:
        path = workdir / metrics.METRICS
        records = metrics.read_lines(path) if path.exists() else []
        seconds = time.perf_counter() - started
        summary = {**run.config._asdict(), **_diverged(records, run.config, dataset.num_classes)}
        summary |= {"diverged": str(error), "seconds": seconds}
    shutil.rmtree(workdir / metrics.CHECKPOINTS, ignore_errors=True)
    return {name: value for name, value in summary.items() if name != "data_dir"}, records


def _diverged(records: list[dict[str, Any]], this: Config, num_classes: int) -> dict[str, Any]:
    last = records[-1] if records else {"updates": 0, "samples": 0, "batch_size": this.batch_size}
    attacked = ("fgsm_accuracy", "pgd_accuracy") if this.pgd_steps else ("fgsm_accuracy",)
    return {
        "updates": last["updates"],  # at the end of the last whole epoch
        "samples": last["samples"],
        **dict.fromkeys(("test_accuracy", *attacked), 100 / num_classes),
        "final_batch_size": last["batch_size"],
        "eigenvalue": None,
    }


def check(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if a setting is out of its range, as far as that can be told without the data."""
    config.check(Config(**settings))


def planned_updates(settings: Mapping[str, Any], num_examples: int) -> tuple[int, int]:
    """Plan a run: the fewest and the most updates, the same for a rule that measures nothing."""
    this = Config(**settings)
    fields = {name: getattr(this, name) for name in methods.Settings._fields if name in SETTINGS}
    bounds = methods.make_plans(methods.Settings(**{**fields, "num_examples": num_examples}))
    return bounds.fewest.updates, bounds.most.updates


class Trained(NamedTuple):
    """A trained network and its data."""

    params: Params
    loss_fn: LossFn  # in evaluation mode; a batch may have weights
    attacked_loss_fn: LossFn  # the cross-entropy that an attack raises
    last_layer: str  # its path, as ``curvature.restrict`` takes it
    splits: dict[str, dict[str, np.ndarray]]  # "train", "test": images as they are stored
    num_classes: int


def trained(summary: Mapping[str, Any], workdir: pathlib.Path, data_dir: str | None) -> Trained:
    """Read the network that ``train_one`` has left in a workdir."""
    dataset = load(summary["dataset"], data_dir=data_dir)
    model = models.create(summary["model"], dataset.num_classes)
    like = init_model(model, Config(dataset=summary["dataset"], model=summary["model"]), dataset)
    params, model_state = checkpoint.load_params(workdir, *like)
    return Trained(
        params,
        evaluation_loss(model, model_state),
        losses.cross_entropy(evaluation_logits(model, model_state)),
        last_layer(params, dataset.num_classes),
        {"train": dataset.train, "test": dataset.test},
        dataset.num_classes,
    )


def batches(split: Mapping[str, np.ndarray], num_examples: int, size: int) -> list[Any]:
    """Cut the first examples of a split into batches of weight 1, images in [0, 1]; a last part is left out."""
    first = {name: array[:num_examples] for name, array in split.items()}
    whole = [batch for batch in data.eval_batches(first, size) if batch["weight"].all()]
    return [jax.jit(scale_images)(batch) for batch in whole]
