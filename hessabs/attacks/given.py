"""What an attack is given: constants, on meshes whose axes are the compiler's.

No derivative goes through an attack, neither by its arguments nor by what the loss closes over. What it finds
counts as given, as Madry et al. (2017) train; Danskin's theorem makes that the derivative of the worst loss
(arXiv:1706.06083, appendix A).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from hessabs import trees
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import Attack, LossFn, Params


def given(inputs_key: str | int, *, early_exit: bool = False) -> Callable[[Attack], Attack]:
    """Give an attack constants on automatic axes, and the caller its batch with the point that was found.

    Args:
      inputs_key: Key, field name or index of the inputs that the attack moves.
      early_exit: Whether it stops an example at the first error, which ``evaluate`` warns of where the examples
        are to transfer: an attribute of the attack.

    Returns:
      A decorator of ``attack(loss_fn, params, batch, key=None) -> batch``.

    Example:
      >>> import jax.numpy as jnp
      >>> @given("image")
      ... def shift(loss_fn, params, batch, key=None):
      ...     return with_inputs(batch, "image", batch["image"] + params)
      >>> def moved(w):
      ...     return jnp.sum(shift(None, w, {"image": jnp.zeros(2)})["image"])
      >>> moved(3.0), jax.grad(moved)(3.0)
      (Array(6., dtype=float32), Array(0., dtype=float32, weak_type=True))
    """

    def decorate(attack: Attack) -> Attack:
        @functools.wraps(attack)
        def of_constants(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
            whole = trees.as_partial(loss_fn), params, batch
            if not any(trees.is_traced(leaf) or _is_explicit(leaf) for leaf in jax.tree.leaves(whole)):
                point = get_inputs(attack(loss_fn, params, batch, key), inputs_key)
                return with_inputs(batch, inputs_key, trees.constant(point))  # the loss may close over tracers
            loss, constants, examples = on_automatic_axes(trees.constant(whole))
            point = trees.constant(get_inputs(attack(loss, constants, examples, key), inputs_key))
            inputs = get_inputs(batch, inputs_key)
            if _is_explicit(inputs):
                point = jax.device_put(point, inputs.sharding)
            return with_inputs(batch, inputs_key, point)  # labels and the like are the caller's

        of_constants.early_exit = early_exit  # type: ignore[attr-defined]
        return of_constants

    return decorate


def on_automatic_axes(tree: Any) -> Any:
    """Put arrays that lie on explicit axes of a mesh on automatic ones, where they lie; leave others."""
    return jax.tree.map(lambda leaf: _automatic(leaf) if _is_explicit(leaf) else leaf, tree)


def _is_explicit(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array) or trees.is_traced(leaf) or not isinstance(leaf.sharding, NamedSharding):
        return False
    return AxisType.Explicit in leaf.sharding.mesh.axis_types


def _automatic(leaf: jax.Array) -> jax.Array:
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec  # type: ignore[attr-defined]
    axes = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    return jax.device_put(leaf, NamedSharding(axes, spec))
