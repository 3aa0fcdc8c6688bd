"""Which leaves of a batch carry its examples, how many there are, and how to cut them.

Two kinds of leaves have no example axis and belong to the whole batch, whatever part of it is taken: scalars,
and random keys. Everything that counts, cuts or maps over examples asks here, so that no leaf is taken for the
examples because it happens to come first.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KEY_WORDS = (2, 4)  # uint32 words of an untyped random key: threefry, rbg


def num_examples(batch: Any) -> int:
    """Count the examples of a batch; refuse one whose leaves disagree, or that has none."""
    lengths = _lengths(batch)
    if not lengths:
        raise ValueError(
            "The batch has no leaf with a leading example axis: it holds nothing but scalars and random keys."
        )
    first = lengths[0]
    for other in lengths:
        if other[1] != first[1]:
            raise ValueError(
                "The leaves of a batch must share their leading example axis, but "
                f"{_describe(*first)} and {_describe(*other)}. Bind what does not belong to single examples "
                "(class weights, tables) to the loss with jax.tree_util.Partial."
            )
    return first[1]


def map_examples(function: Callable[..., Any], batch: Any, *rest: Any) -> Any:
    """Apply a function to the leaves that carry examples; scalars and random keys stay as they are."""
    size = num_examples(batch)
    return jax.tree.map(lambda x, *y: function(x, *y) if _carries(x, size) else x, batch, *rest)


def carries_examples(batch: Any) -> list[bool]:
    """Say of each leaf, in the order of ``jax.tree.leaves``, whether it carries examples."""
    size = num_examples(batch)
    return [_carries(x, size) for x in jax.tree.leaves(batch)]


def each_example(function: Callable[[Any], Any], batch: Any) -> Any:
    """Apply a function to batches of one example each, under ``jax.vmap``."""
    leaves, treedef = jax.tree.flatten(batch)
    carries = carries_examples(batch)

    def one(examples: list[Any]) -> Any:
        rows = iter(examples)
        one_each = [next(rows)[None] if c else x for x, c in zip(leaves, carries, strict=True)]
        return function(jax.tree.unflatten(treedef, one_each))

    return jax.vmap(one)([jnp.asarray(x) for x, c in zip(leaves, carries, strict=True) if c])


def total_weight(weight: Callable[[Any], Any] | None, batch: Any) -> jax.Array:
    """Say how much a batch counts in a mean over several, in at least float32: by ``weight(batch)``, which is
    what the loss divides by or an array whose sum that is, or else by the number of examples.
    """
    each = jnp.asarray(num_examples(batch) if weight is None else weight(batch))
    # Wider before the sum: one of many in bfloat16 stands still, and in float16 is infinite soon.
    return jnp.sum(each, dtype=jnp.promote_types(each.dtype, jnp.float32))


def _lengths(batch: Any) -> list[tuple[str, int, Any]]:
    leaves = [
        (jax.tree_util.keystr(path), jnp.shape(leaf)[0], leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        if jnp.ndim(leaf) > 0
    ]
    # An untyped key is an array of 2 or 4 numbers. As many examples might have such a leaf too; then it is cut
    # with them, and JAX refuses the part of a key.
    return [leaf for leaf in leaves if not _may_be_key(leaf[2])] or leaves


def _carries(leaf: Any, size: int) -> bool:
    return jnp.ndim(leaf) > 0 and jnp.shape(leaf)[0] == size


def _may_be_key(leaf: Any) -> bool:
    return leaf.dtype == np.uint32 and leaf.ndim == 1 and leaf.shape[0] in _KEY_WORDS


def _describe(path: str, length: int, leaf: Any) -> str:
    return f"{path or 'the root'} has {length} ({leaf.dtype}{list(leaf.shape)})"
