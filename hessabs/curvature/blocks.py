"""Blocks of an operator: the curvature of some of the params, the others held fixed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.curvature.linearization import Source, source_of
from hessabs.curvature.parts import MEMORY_BUDGET, Linearize, make_operator, split_product
from hessabs.curvature.streaming import stream_product
from hessabs.typing import MatVec, Params


def restrict(
    operator: MatVec,
    params: Params,
    where: str | Callable[[str], bool],
    *,
    linearize: Linearize | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> MatVec:
    """Take the diagonal block of an operator that belongs to chosen leaves of the params.

    Vectors of the block have the structure of ``params`` with None in the place of the leaves that are not
    chosen; ``hessabs.trees.partition(params, where)[0]`` makes one. An operator that this library made is made
    again with the other leaves fixed, so nothing is propagated below the block; when it is linearised, what
    lies below is not computed at a product at all (the trunk is cut) and a product costs no more than one of
    the network above. Any other callable is multiplied with the vector padded by zeros, at its full cost.

    Args:
      operator: From ``hessian``, ``gauss_newton``, ``fisher``, ``dataset_hessian`` and the like, or any
        callable.
      params: The params of the operator.
      where: Part of a path, whole keys joined with "/" (``"Dense_2"``, ``"head/kernel"``), or a predicate on
        the path: a layer, the last layer, all kernels.
      linearize: As in ``hessian``; None to linearise the block if the operator is linearised.
      memory_budget: As in ``hessian``.

    Returns:
      A callable pytree over block vectors.

    Raises:
      ValueError: If no leaf is chosen, with the paths there are; or ``params`` are not those of the operator.

    Example:
      >>> from hessabs import curvature
      >>> loss = lambda w, x: jnp.mean((x * w["scale"]) ** 2) + w["shift"] ** 4
      >>> params = {"scale": jnp.ones(()), "shift": jnp.ones(())}
      >>> block = restrict(curvature.hessian(loss, params, jnp.ones(3)), params, "shift")
      >>> block({"scale": None, "shift": jnp.ones(())})
      {'scale': None, 'shift': Array(12., dtype=float32)}
    """
    _, frozen = trees.partition(params, where)
    if isinstance(operator, Partial) and operator.func in (split_product, stream_product):
        source, *others = operator.args
        trees.check_like(params, source.params, "params", "the params of `operator`")
        return Partial(operator.func, _source_of_block(source, where), *others)
    made = source_of(operator)
    if made is None:
        return Partial(_padded_product, trees.as_partial(operator), jax.tree.map(jnp.zeros_like, frozen))
    source, linearized = made
    trees.check_like(params, source.params, "params", "the params of `operator`")
    return make_operator(
        _source_of_block(source, where), linearized if linearize is None else linearize, memory_budget
    )


def _source_of_block(source: Source, where: str | Callable[[str], bool]) -> Source:
    block, frozen = trees.partition(source.params, where)
    first, *others = source.functions
    return source._replace(functions=(Partial(_with_frozen, first, frozen), *others), params=block)


def _with_frozen(function: Callable[..., Any], frozen: Params, block: Params, batch: Any) -> Any:
    return function(trees.combine(block, frozen), batch)


def _padded_product(operator: MatVec, zeros: Params, vector: Params) -> Params:
    product = operator(trees.combine(vector, zeros))
    return jax.tree.map(
        lambda chosen, whole: None if chosen is None else whole, vector, product, is_leaf=lambda x: x is None
    )
