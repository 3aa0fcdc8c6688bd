"""A task of plain functions."""

from collections.abc import Callable
from typing import Any

import jax

from hessabs.data import as_source
from hessabs.training.task import Logits, Loss, Task
from hessabs.typing import Params


def plain(
    init: Callable[[jax.Array], Params | tuple[Params, Any]] | Params,
    loss: Loss,
    train: Any,
    test: Any,
    *,
    name: str | None = None,
    logits: Logits | None = None,
    **fields: Any,
) -> Task:
    """Make a task of plain functions.

    Args:
      init: Params, or ``init(key)`` that returns params or (params, model state).
      loss: ``loss(params, model_state, batch, key, train) -> LossOutput(mean, weight, model_state, metrics)``.
        It must heed ``batch["weight"]``, 0 for examples that only fill a batch up.
      train: Arrays or any source with random access, as ``hessabs.data.as_source`` takes them.
      test: The same for evaluation.
      name: For messages and records; that of the loss by default.
      logits: ``logits(params, model_state, inputs)`` in evaluation mode, for predictions and attacks.
      **fields: Further fields of the ``Task``: for attacks ``inputs_key`` and ``bounds``.

    Example:
      >>> import numpy as np
      >>> import jax.numpy as jnp
      >>> from hessabs.training import LossOutput
      >>> def loss(params, model_state, batch, key, train):
      ...     errors = batch["x"] @ params["w"] - batch["y"]
      ...     total = jnp.sum(batch["weight"])
      ...     return LossOutput(jnp.sum(batch["weight"] * errors**2) / total, total, model_state)
      >>> examples = {"x": np.ones((8, 3), np.float32), "y": np.ones(8, np.float32)}
      >>> plain({"w": jnp.zeros(3)}, loss, examples, examples).name
      'loss'
    """

    def draw(key: jax.Array) -> tuple[Params, Any]:
        if not callable(init):
            return init, {}
        made = init(key)
        return made if type(made) is tuple and len(made) == 2 else (made, {})  # params may be a NamedTuple

    known = name or str(getattr(loss, "__name__", "task"))
    if fields.get("validation") is not None:
        fields["validation"] = as_source(fields["validation"])
    return Task(known, draw, loss, as_source(train), as_source(test), logits=logits, **fields)
