"""What to do about things that are taken for params, or raised by a loss, and cannot be what was meant.

The libraries of the models are not imported: their objects are known by the names of their classes.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

_ARRAYS = "make arrays of them, `jax.tree.map(jnp.asarray, params)`"
_NNX = (
    "split it, `graphdef, params, rest = nnx.split(model, nnx.Param, ...)`, and put it together in the loss, "
    "`nnx.merge(graphdef, params, rest)`"
)
_EQUINOX = (
    "take the arrays of an Equinox module, `params, static = eqx.partition(model, eqx.is_inexact_array)`, and "
    "put it together in the loss, `eqx.combine(params, static)`"
)


def whole_model(tree: Any) -> str | None:
    """Say why a pytree holds more than params and what to do, or None when nothing is known against it."""
    if any(map(_is_nnx_module, jax.tree.leaves(tree, is_leaf=_is_nnx_module))):
        return f"holds a whole NNX module, statistics and counters among its arrays: {_NNX}"
    if any(map(_is_statistic, jax.tree.leaves(tree, is_leaf=_is_statistic))):
        return f"holds the batch statistics of an NNX module: {_NNX}"
    if isinstance(tree, Mapping) and {"params", "batch_stats"} <= set(tree):
        return 'holds "batch_stats" beside "params": give `variables["params"]` and bind the rest to the loss'
    return None


def no_param(leaf: Any) -> tuple[str, str] | None:
    """Say why a leaf is no param: what it is and what to do, or None for a floating-point array."""
    if not hasattr(leaf, "dtype"):
        if isinstance(leaf, bool | int | float | complex):
            return f"the Python {type(leaf).__name__} {leaf!r}", _ARRAYS
        return f"{leaf!r}, which is no array,", _EQUINOX
    dtype = jnp.result_type(leaf)
    if jnp.issubdtype(dtype, jnp.floating):
        return None
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return str(dtype), "a Hessian is that of real params: give real and imaginary part as two arrays"
    return str(dtype), "bind other arrays with jax.tree_util.Partial"


def of_error(error: Exception) -> str | None:
    """Say what an error of a model's library means inside an operator; None if it speaks for itself."""
    if type(error).__name__ != "TraceContextError":
        return None
    return (
        "The loss changes a variable of an NNX model that was made outside of it (batch statistics, a counter "
        "of random numbers, a param). Call `model.eval()` before the model is split, and put it together in "
        f"the loss with `nnx.merge` instead of changing it with `nnx.update`. Flax says: {error}"
    )


def of_call(error: Exception, function: Callable[..., Any], args: Sequence[Any]) -> str | None:
    """Say that a function of the caller takes other arguments than it is called with; None if it takes them."""
    if not isinstance(error, TypeError):
        return None
    try:
        signature = inspect.signature(function)
        signature.bind(*args)
    except TypeError:
        return (
            f"The function takes {signature}, but a loss is called as `loss_fn(params, batch)` and a model as "
            "`model_fn(params, batch)`: take both, and bind what else it needs with jax.tree_util.Partial."
        )
    except ValueError:  # it has no signature
        pass
    return None


def _is_nnx_module(node: Any) -> bool:
    return has_class(node, "Module", "flax.nnx")


def _is_statistic(node: Any) -> bool:
    return has_class(node, "BatchStat", "flax.nnx")


def has_class(node: Any, name: str, library: str) -> bool:
    """Say whether a value is of a class of a library, which is not imported for that."""
    return any(c.__name__ == name and c.__module__.startswith(library) for c in type(node).__mro__)
