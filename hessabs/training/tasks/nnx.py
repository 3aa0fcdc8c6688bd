"""A task of a ``flax.nnx`` module."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from hessabs.training.task import Task
from hessabs.training.tasks.common import Data, make_task, read_data
from hessabs.training.tasks.losses import OutputLoss

if TYPE_CHECKING:  # imported where it is used: half a second that no other task needs
    from flax import nnx as flax_nnx


def nnx(
    factory: "Callable[[flax_nnx.Rngs], flax_nnx.Module]",
    data: Data,
    *,
    name: str | None = None,
    inputs: str | Callable[[Any], Any] | None = None,
    loss: OutputLoss | None = None,
    **fields: Any,
) -> Task:
    """Make a task of an NNX module.

    Its ``nnx.Param`` variables are the params; others, batch norm statistics say, are the state of the model.
    Random streams (dropout) are seeded anew in every call, so a run depends on its seed alone. ``train()`` and
    ``eval()`` of the module switch its mode.

    Args:
      factory: ``factory(rngs) -> module``.
      data, name, inputs, loss, **fields: As for ``linen``.

    Raises:
      ValueError: As ``linen``.

    Example:
      >>> from flax import nnx as flax_nnx
      >>> from hessabs import data
      >>> class Net(flax_nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.dense = flax_nnx.Linear(64, 10, rngs=rngs)
      ...
      ...     def __call__(self, x):
      ...         return self.dense(x.reshape(len(x), -1))
      >>> task = nnx(lambda rngs: Net(rngs), data.load("digits"))
      >>> task.name, task.init(jax.random.key(0))[0]["dense"]["kernel"].shape
      ('Net', (64, 10))
    """
    from flax import nnx as flax_nnx

    found = read_data(data, inputs, loss)

    # The structure is that of any key; the streams of random numbers are templates.
    shapes = flax_nnx.eval_shape(lambda: factory(flax_nnx.Rngs(0)))
    shapes.eval()
    evaluating, params_like, streams_like, state_like = _split(shapes)
    shapes.train()
    training = flax_nnx.graphdef(shapes)

    def init(key: jax.Array) -> tuple[Any, Any]:
        _, params, _, model_state = _split(factory(flax_nnx.Rngs(key)))
        return flax_nnx.to_pure_dict(params), flax_nnx.to_pure_dict(model_state)

    def apply(params: Any, model_state: Any, x: Any, key: jax.Array, train: bool) -> tuple[Any, Any]:
        module = flax_nnx.merge(
            training if train else evaluating,
            _filled(params_like, params),
            _seeded(streams_like, key),
            _filled(state_like, model_state),
        )
        outputs = module(x)
        return outputs, flax_nnx.to_pure_dict(_split(module)[3]) if train else model_state

    return make_task(name or type(shapes).__name__, found, init, apply, **fields)


def _split(module: "flax_nnx.Module") -> Any:
    """Take a module apart: its structure, params, random streams, and all else."""
    from flax import nnx as flax_nnx

    return flax_nnx.split(module, flax_nnx.Param, flax_nnx.RngState, ...)


def _filled(like: Any, values: Any) -> Any:
    from flax import nnx as flax_nnx

    state = jax.tree.map(lambda x: x, like)
    flax_nnx.replace_by_pure_dict(state, values)
    return state


def _seeded(like: Any, key: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(like)

    def seed(number: int, shape: tuple[int, ...]) -> jax.Array:
        own = jax.random.fold_in(key, number)
        return jax.random.split(own, shape) if shape else own  # of layers that are stacked

    seeded = [
        seed(number, leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, seeded)
