"""Going on from a saved state."""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs.batch_size.controller import Controller, ControllerState


def restore(controller: Controller, state: Any) -> ControllerState:
    """Check that a saved state belongs to a rule, and make it one of its states.

    What is compared is the structure, the dtypes and the range of the batch size. Two rules that remember the
    same things (``timer``, ``fixed_growth``) are not told apart within it: whoever saves a state saves the
    settings of its rule too, and compares them.

    Args:
      controller: The rule that is to go on.
      state: A pytree like its states, with arrays of any kind for leaves.

    Returns:
      The state, a ``ControllerState`` of JAX arrays.

    Raises:
      ValueError: If the state is that of another rule: showing the first field that differs.

    Example:
      >>> from hessabs.batch_size import constant, hessian_adaptive
      >>> restore(constant(8), hessian_adaptive(8, 16, measure_every=9).init())  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      ...
      ValueError: ... not one of this rule: at .rule.reference it has float32[] and the rule has nothing.
    """
    want = controller.init()
    saved, known = _by_path(state), _by_path(want)
    for path in [*known, *saved]:
        left, right = _describe(saved.get(path)), _describe(known.get(path))
        if left != right:
            raise ValueError(
                f"The saved state is not one of this rule: at {path} it has {left} and the rule has {right}."
            )
    size, range_ = int(saved[".batch_size"]), controller.batch_sizes
    if range_ is not None and not range_[0] <= size <= range_[1]:
        raise ValueError(
            f"The saved state is not one of this rule: its batch size is {size} and the rule's go from "
            f"{range_[0]} to {range_[1]}."
        )
    return jax.tree.map(lambda leaf, path: jnp.asarray(saved[path]), want, _paths(want))


def _paths(tree: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jax.tree_util.keystr(path), tree)


def _by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _describe(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
