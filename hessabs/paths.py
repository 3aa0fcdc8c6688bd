"""Names of the leaves of a pytree, the same whatever library the model is written in, and a choice by them."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

Where: TypeAlias = str | Callable[[str], bool]
"""Part of a path, whole keys joined with "/" (``"Dense_2"``, ``"Dense_2/kernel"``), or a predicate on paths."""


def paths(tree: Any) -> list[str]:
    """Name the leaves of a pytree: the keys of each, joined with "/"; a box around an array has none."""
    named = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        named += [name] * len(jax.tree.leaves(node))
    return named


def is_box(node: Any) -> bool:
    """Tell whether a node is an array in a box: an ``AxisMetadata`` of flax or a ``Variable`` of NNX."""
    return hasattr(type(node), "unbox") or hasattr(type(node), "get_metadata")


def matcher(where: Where) -> Callable[[str], bool]:
    """Turn a part of a path into a predicate on whole paths; a predicate is returned as it is."""
    if callable(where):
        return where
    return lambda path: f"/{where.strip('/')}/" in f"/{path}/"


def partition(tree: Any, where: Where) -> tuple[Any, Any]:
    """Split a pytree into chosen leaves and the others, with None in the place of what is missing.

    Example:
      >>> partition({"body": {"w": 1.0}, "head": {"w": 2.0}}, "head")
      ({'body': {'w': None}, 'head': {'w': 2.0}}, {'body': {'w': 1.0}, 'head': {'w': None}})
    """
    leaves, treedef = jax.tree.flatten(tree)
    names = paths(tree)
    keep = [bool(matcher(where)(name)) for name in names]
    if not any(keep):
        raise ValueError(f"`where` chooses none of the leaves: got {where!r}, there are {', '.join(names)}.")
    chosen = [leaf if k else None for leaf, k in zip(leaves, keep, strict=True)]
    others = [None if k else leaf for leaf, k in zip(leaves, keep, strict=True)]
    return jax.tree.unflatten(treedef, chosen), jax.tree.unflatten(treedef, others)


def combine(chosen: Any, others: Any) -> Any:
    """Put together what ``partition`` split."""
    return jax.tree.map(lambda a, b: b if a is None else a, chosen, others, is_leaf=lambda x: x is None)
