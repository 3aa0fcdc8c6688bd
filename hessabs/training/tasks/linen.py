"""A task of a ``flax.linen`` module."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from hessabs.training.task import Task
from hessabs.training.tasks.common import Data, make_task, read_data
from hessabs.training.tasks.losses import OutputLoss

# Parameters by which a module is told its mode, and what says that it is trained.
_MODES = {"train": True, "training": True, "deterministic": False, "use_running_average": False}


def linen(
    module: nn.Module,
    data: Data,
    *,
    name: str | None = None,
    inputs: str | Callable[[Any], Any] | None = None,
    loss: OutputLoss | None = None,
    **fields: Any,
) -> Task:
    """Make a task of a Linen module.

    The module is called as ``module(inputs)``, with ``train=``, ``training=``, ``deterministic=``
    and ``use_running_average=`` where it has such parameters; its random streams are those that it asks for by
    the names ``dropout``, ``params`` and ``noise``. Its collections beside the params are the model's state.

    Args:
      module: The network.
      data: A ``hessabs.data.Dataset``, or (train, test): arrays or any source with random access.
      name: For messages and records; the name of its class by default.
      inputs: The key of a batch that it is applied to, or a function of the batch; None for ``"image"``, or all
        but the last of ``"tokens"``.
      loss: ``loss(outputs, batch) -> Mean(mean, weight, metrics)``; None for ``classification``, or
        ``next_token``.
      **fields: Further fields of the ``Task``.

    Raises:
      ValueError: If the module does not take such inputs, or outputs and labels do not fit.

    Example:
      >>> from hessabs import data, models
      >>> task = linen(models.mlp(10), data.load("digits"))
      >>> params, model_state = task.init(jax.random.key(0))
      >>> sorted(params), model_state
      (['Dense_0', 'Dense_1', 'Dense_2'], {})
    """
    found = read_data(data, inputs, loss)
    name = name or type(module).__name__
    parameters = inspect.signature(type(module).__call__).parameters

    def modes(train: bool) -> dict[str, Any]:
        return {mode: train == trained for mode, trained in _MODES.items() if mode in parameters}

    def init(key: jax.Array) -> tuple[Any, Any]:
        streams = {"params": key, "dropout": jax.random.fold_in(key, 1), "noise": jax.random.fold_in(key, 2)}
        try:
            model_state = dict(module.init(streams, found.example, **modes(False)))
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            shapes = ", ".join(str(tuple(x.shape)) for x in jax.tree.leaves(found.example))
            network = f"The network {type(module).__name__}"
            raise ValueError(
                f"{network} does not take the inputs of {name}, shape {shapes}: {reason}"
            ) from error
        return model_state.pop("params"), model_state

    def apply(params: Any, model_state: Any, x: Any, key: jax.Array, train: bool) -> tuple[Any, Any]:
        variables = {"params": params, **model_state}
        if not train:
            return module.apply(variables, x, **modes(False)), model_state
        rngs = {"dropout": key, "noise": jax.random.fold_in(key, 1)}
        outputs, changed = module.apply(variables, x, mutable=list(model_state), rngs=rngs, **modes(True))
        return outputs, dict(changed)

    return make_task(name, found, init, apply, **fields)
