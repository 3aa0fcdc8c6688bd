"""What an attack finds counts as given: no derivative goes through it, as Madry et al. (2017) train.

Danskin's theorem makes it the derivative of the worst loss (arXiv:1706.06083, appendix A).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from hessabs import trees
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import Attack, LossFn, Params


def constant(inputs_key: str | int) -> Callable[[Attack], Attack]:
    """Let no derivative into an attack: what it is given is constant there, and so is the point it finds."""

    def decorate(attack: Attack) -> Attack:
        @functools.wraps(attack)
        def of_constants(loss_fn: LossFn, params: Params, batch: Any, key: jax.Array | None = None) -> Any:
            if not trees.is_traced(loss_fn, params, batch):
                return attack(loss_fn, params, batch, key)
            given = jax.tree.map(_stop, (trees.as_partial(loss_fn), params, batch))
            point = get_inputs(attack(given[0], given[1], given[2], key), inputs_key)
            return with_inputs(batch, inputs_key, jax.lax.stop_gradient(point))  # labels are the caller's

        return of_constants

    return decorate


def _stop(leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if trees.is_traced(leaf) else leaf
