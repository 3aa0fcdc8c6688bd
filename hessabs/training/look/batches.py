"""The examples of a task as batches, and functions of batches as they are read."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.tree_util import Partial

from hessabs.data import Source
from hessabs.training.task import Task, evaluation_loss, evaluation_weight
from hessabs.typing import LossFn, Params


def read(source: Source, size: int, *, number: int = 0, fill: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the first ``number`` examples (0: all), in order, with their weight.

    With ``fill`` all batches have one shape: the last one is filled up at weight 0.
    """
    total = min(number or len(source), len(source))
    size = min(size, total)
    for start in range(0, total, size):
        places = np.arange(start, start + size if fill else min(start + size, total))
        yield {**source.take(places % total), "weight": (places < total).astype(np.float32)}


def raw_loss(task: Task, model_state: Any) -> LossFn:
    """Return ``evaluation_loss`` for batches that are not prepared yet."""
    return Partial(_of_raw, Partial(task.prepare), evaluation_loss(task, model_state))


def raw_weight(task: Task, params: Params, model_state: Any) -> Callable[[Any], Any]:
    """Return ``evaluation_weight`` for batches that are not prepared yet."""
    return Partial(_of_raw, Partial(task.prepare), evaluation_weight(task, params, model_state))


def _of_raw(prepare: Callable[[Any], Any], function: Callable[..., Any], *args: Any) -> Any:
    *params, batch = args
    return function(*params, prepare(batch))
