"""A finished run, read back from its folder."""

import json
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn

from hessabs import models
from hessabs.data import Dataset
from hessabs.training import metrics
from hessabs.training.config import Config
from hessabs.training.saving import checkpoint
from hessabs.training.setup import set_up
from hessabs.typing import Params


class Trained(NamedTuple):
    """A network that a run left, and the data it was trained on."""

    config: Config
    dataset: Dataset
    model: nn.Module
    params: Params
    model_state: Any  # its other collections


def load_trained(workdir: pathlib.Path, data_dir: str | None = None) -> Trained:
    """Read a finished run.

    Args:
      workdir: Its folder.
      data_dir: Folder of its TFDS data set, if it is not the one that the run was told.

    Returns:
      A ``Trained``.

    Raises:
      FileNotFoundError: If the folder holds no finished run.
      ValueError: If the data is not on disk.
    """
    summary = workdir / metrics.SUMMARY
    if not summary.exists():
        raise FileNotFoundError(f"{workdir} holds no finished run ({metrics.SUMMARY}): train one there first.")
    fields = json.loads(summary.read_text())
    config = Config(**{name: fields[name] for name in Config._fields if name in fields})
    run = set_up(
        config._replace(
            data_dir=data_dir or config.data_dir,
            devices=None,  # there may be fewer here than it was trained on
            lr_decay_epochs=tuple(config.lr_decay_epochs),
            grow_epochs=tuple(config.grow_epochs),
        )
    )
    params, model_state = checkpoint.load_params(workdir, run.state.params, run.state.model_state)
    model = models.create(config.model, run.dataset.num_classes)
    return Trained(run.config, run.dataset, model, params, model_state)
