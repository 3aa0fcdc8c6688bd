"""Callbacks by name, or of a file of the user."""

import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from hessabs.training.callbacks.csv import csv
from hessabs.training.callbacks.protocol import Callback, Named
from hessabs.training.callbacks.tensorboard import tensorboard
from hessabs.training.callbacks.wandb import wandb
from hessabs.training.factories import call_factory, load_factory
from hessabs.training.fields import is_factory, nearest

_MAKERS = {"csv": csv, "tensorboard": tensorboard, "wandb": wandb}


class CallbackSettings(NamedTuple):
    """Who is told of a run."""

    callbacks: Annotated[
        tuple[str, ...],
        "told of every epoch and every decision, comma-separated: csv: metrics.csv in workdir; tensorboard: "
        "event files in workdir/tensorboard; wandb: Weights & Biases, where installed; FILE.py:factory: called "
        "as factory(), returns a function of (event, record)",
    ] = ()


def make_callbacks(names: Sequence[str], workdir: pathlib.Path) -> list[Callback]:
    """Make the callbacks of a run; nothing is written before its start."""
    result: list[Any] = []
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"`callbacks` must name each once, got {name!r} twice.")
        if is_factory(name):
            made = call_factory(load_factory(name), callable, "a function of (event, record)")
        elif name in _MAKERS:
            made = _MAKERS[name](workdir)
        else:
            known = f"{', '.join(_MAKERS)} or FILE.py:factory"
            raise ValueError(f"`callbacks` must be {known}, got {name!r}{nearest(name, _MAKERS)}.")
        result.append(Named(name, made))
    return result
