"""What a transformation that evaluates the loss needs of its update."""

from typing import Any

import jax
import optax

from hessabs import trees


def require_arguments(who: str, note: str = "", **arguments: Any) -> None:
    """Raise ``ValueError`` where an update was not given what it needs, or params that are not all params."""
    missing = [name for name, value in arguments.items() if value is None]
    if missing:
        raise ValueError(
            f"{who} needs {', '.join(missing)}: call "
            f"update(gradient, state, params, loss_fn=..., batch=...){note or '.'}"
        )
    if any(map(_is_masked, jax.tree.leaves(arguments["params"], is_leaf=_is_masked))):
        raise ValueError(
            f"{who} evaluates the loss and needs all params: put it outside of optax.masked and of "
            "optax.multi_transform (optax.partition), which hide some of them."
        )
    trees.check_floating(arguments["params"], "params")


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
