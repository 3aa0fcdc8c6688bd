"""The part of a batch that attacks change and input Hessians turn: its inputs, one leaf of the batch."""

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def get_inputs(batch: Any, key: str | int) -> jax.Array:
    """Take the inputs out of a batch: the leaf at a key, field name or index, which must be floating-point."""
    inputs = get_leaf(batch, key, "The attack changes the inputs", "; pass `inputs_key`")
    dtype = jnp.result_type(inputs)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"The inputs at key {key!r} must be floating-point to be perturbed, got {dtype}; "
            "scale them to [0, 1] as float32 first."
        )
    return inputs


def get_leaf(batch: Any, key: str | int, why: str, advice: str = "") -> Any:
    """Take a leaf out of a batch, or raise and say why it was wanted."""
    try:
        return batch[key] if isinstance(batch, Mapping) or isinstance(key, int) else getattr(batch, key)
    except (KeyError, IndexError, AttributeError, TypeError):
        raise ValueError(f"{why} at key {key!r}, but the batch has {_keys(batch)}{advice}.") from None


def with_inputs(batch: Any, key: str | int, inputs: jax.Array) -> Any:
    """Return the batch with other inputs; all other leaves are the same objects."""
    if isinstance(batch, dict):  # one of a kind that is made of something else, too: a defaultdict
        batch = copy.copy(batch)
        batch[key] = inputs
        return batch
    if isinstance(batch, Mapping):
        return type(batch)({**batch, key: inputs})  # type: ignore[call-arg]
    if hasattr(batch, "_replace"):
        field = batch._fields[key] if isinstance(key, int) else key
        return batch._replace(**{field: inputs})
    items = list(batch)
    items[int(key)] = inputs
    return type(batch)(items)


def _keys(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"the keys {list(batch)}"
    if hasattr(batch, "_fields"):
        return f"the fields {list(batch._fields)}"
    if isinstance(batch, (tuple, list)):
        return f"{len(batch)} items"
    return f"the type {type(batch).__name__}"
