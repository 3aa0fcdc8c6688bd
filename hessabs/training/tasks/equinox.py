"""A task of an Equinox module."""

import inspect
from collections.abc import Callable
from typing import Any

import jax

from hessabs.training.task import Task
from hessabs.training.tasks.common import Data, make_task, read_data
from hessabs.training.tasks.losses import OutputLoss


def equinox(
    factory: Callable[[jax.Array], Any],
    data: Data,
    *,
    name: str | None = None,
    inputs: str | Callable[[Any], Any] | None = None,
    loss: OutputLoss | None = None,
    **fields: Any,
) -> Task:
    """Make a task of an Equinox module.

    The module is applied to one example at a time, as Equinox has it: ``module(x)``, with ``key=`` where it has
    such a parameter. Its inexact arrays are the params. A module with state (``eqx.nn.make_with_state``) is
    called as ``module(x, state)`` and returns the outputs and the state; batch norm sees the axis ``"batch"``.

    Args:
      factory: ``factory(key) -> module``, or ``-> (module, state)``.
      data, name, inputs, loss, **fields: As for ``linen``.

    Raises:
      ValueError: As ``linen``.

    Example:
      >>> import equinox as eqx
      >>> from hessabs import data
      >>> class Net(eqx.Module):
      ...     dense: eqx.nn.Linear
      ...
      ...     def __call__(self, x):
      ...         return self.dense(x.reshape(-1))
      >>> task = equinox(lambda key: Net(eqx.nn.Linear(64, 10, key=key)), data.load("digits"))
      >>> task.name, [leaf.shape for leaf in jax.tree.leaves(task.init(jax.random.key(0))[0])]
      ('Net', [(10, 64), (10,)])
    """
    import equinox as eqx

    found = read_data(data, inputs, loss)

    def make(key: jax.Array) -> tuple[Any, Any]:
        made = factory(key)
        return made if isinstance(made, tuple) else (made, None)

    # What is no array, and arrays that are no params, are the same for every key.
    module, _ = make(jax.random.key(0))
    _, static = eqx.partition(module, eqx.is_inexact_array)
    _, state_like = eqx.filter_eval_shape(make, jax.random.key(0))
    state_structure = jax.tree.structure(state_like)
    takes_key = "key" in inspect.signature(module).parameters
    has_state = state_like is not None

    def init(key: jax.Array) -> tuple[Any, Any]:
        module, state = make(key)
        return eqx.filter(module, eqx.is_inexact_array), dict(_numbered(state)) if has_state else {}

    def apply(params: Any, model_state: Any, x: Any, key: jax.Array, train: bool) -> tuple[Any, Any]:
        module = eqx.nn.inference_mode(eqx.combine(params, static), value=not train)
        keys = jax.random.split(key, len(jax.tree.leaves(x)[0]))

        def one(x: Any, key: jax.Array, state: Any) -> Any:
            options = {"key": key} if takes_key else {}
            return module(x, state, **options) if has_state else (module(x, **options), None)

        state = jax.tree.unflatten(state_structure, [model_state[k] for k in sorted(model_state)])
        batched = jax.vmap(one, in_axes=(0, 0, None), out_axes=(0, None), axis_name="batch")
        outputs, new = batched(x, keys, state)
        return outputs, dict(_numbered(new)) if has_state else {}

    return make_task(name or type(module).__name__, found, init, apply, **fields)


def _numbered(state: Any) -> list[tuple[str, Any]]:
    return [(f"{number:04d}", leaf) for number, leaf in enumerate(jax.tree.leaves(state))]
