"""Blocks of an operator: the curvature of some of the params, the others held fixed, or of every layer."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import loops, paths, trees
from hessabs.curvature.eigsh import eigsh
from hessabs.curvature.layers import IsLayer, Layer, layers
from hessabs.curvature.linearization import Source
from hessabs.curvature.parts import MEMORY_BUDGET, Linearize, make_operator
from hessabs.curvature.trace import Estimate, frobenius_norm, trace
from hessabs.paths import Where
from hessabs.typing import MatVec, Operator, Params


def restrict(
    operator: MatVec,
    params: Params,
    where: Where | Layer,
    *,
    linearize: Linearize | None = None,
    memory_budget: int = MEMORY_BUDGET,
) -> MatVec:
    """Take the diagonal block of an operator that belongs to chosen leaves of the params.

    Vectors of the block are what ``block_params`` makes. An operator that this library made is made again with
    the other leaves fixed, so nothing is propagated below the block; when it is linearised, what lies below is
    not computed at a product at all (the trunk is cut). Any other callable is multiplied with the vector padded
    by zeros, at its full cost.

    Args:
      operator: From ``hessian``, ``gauss_newton``, ``fisher``, ``dataset_hessian`` and the like, or any
        callable.
      params: The params of the operator.
      where: Part of a path, whole keys joined with "/" (``"Dense_2"``, ``"head/kernel"``), a predicate on
        the path (all kernels, say), or a ``Layer``: one of ``layers(params).values()``. For the layer of a
        stack the vectors hold its slices.
      linearize, memory_budget: As in ``hessian``; None to linearise the block if the operator is linearised.

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
    if not isinstance(operator, Operator) or not isinstance(operator.source, Source):
        _, others, cut = _split(params, where)
        zeros = jax.tree.map(jnp.zeros_like, others)
        if isinstance(operator, Operator):  # made of another one
            return Operator(operator, (zeros, cut), _padded_product, operator.runs)
        return Partial(_padded_product, trees.as_partial(operator), zeros, cut)
    trees.check_like(params, operator.source.params, "params", "the params of `operator`")
    block, others, cut = _split(operator.source.params, where)
    first, *rest = operator.source.functions
    functions = (Partial(_with_fixed, first, others, cut), *rest)
    source = operator.source._replace(functions=functions, params=block)
    if operator.runs != "compiled":
        return dataclasses.replace(operator, source=source)
    if linearize is None:
        linearize = operator.rest != (None,)
    return make_operator(source, linearize, memory_budget)


def block_params(params: Params, where: Where | Layer) -> Params:
    """Take the leaves of a block, in the structure of its vectors.

    Args:
      params: The params of an operator, or any pytree of their structure: a start vector, say.
      where: As in ``restrict``, which raises the same errors.

    Returns:
      ``params`` with None in the place of the leaves that are not chosen.

    Example:
      >>> block_params({"body": jnp.ones(2), "head": jnp.ones(1)}, "head")
      {'body': None, 'head': Array([1.], dtype=float32)}
    """
    return _split(params, where)[0]


class LayerCurvature(NamedTuple):
    """The block of one layer."""

    layer: str  # the path of the layer, keys joined with "/"
    num_params: int
    largest: float  # largest eigenvalue
    smallest: float  # smallest eigenvalue
    converged: bool  # whether both reached `rtol`
    trace: Estimate
    frobenius_norm: Estimate


def layer_table(
    operator: MatVec,
    params: Params,
    key: jax.Array,
    *,
    is_layer: IsLayer | None = None,
    stacked: Where | None = None,
    rtol: float = 1e-2,
    max_matvecs: int = 200,
    num_probes: int = 30,
    loop: loops.Loop | None = None,
) -> list[LayerCurvature]:
    """Measure the block of every layer: extreme eigenvalues, trace and Frobenius norm.

    Args:
      operator, params: As in ``restrict``: a linearised operator is linearised once more for each layer.
      key: A random key.
      is_layer, stacked: What a layer is, as in ``layers``; each of a stack gets its own row.
      rtol: Relative residual of the eigenvalues.
      max_matvecs: Largest number of products for the two eigenvalues of a layer.
      num_probes: Products for the trace, and again for the norm.
      loop: Where it runs; see ``hessabs.loops``.

    Returns:
      One ``LayerCurvature`` a layer, in the order of the tree.

    Raises:
      ValueError: As ``layers``, ``restrict`` and ``eigsh``.

    Example:
      >>> from hessabs import curvature
      >>> params, loss = {"a": {"w": jnp.ones(2)}}, lambda p, x: x[0] * jnp.sum(p["a"]["w"] ** 2)
      >>> [row] = layer_table(curvature.hessian(loss, params, jnp.ones(1)), params, jax.random.key(0))
      >>> row.layer, round(row.largest, 3), float(row.trace.value)
      ('a', 2.0, 4.0)
    """
    found = layers(params, is_layer, stacked=stacked)
    rows = []
    for layer, one in zip(found.values(), jax.random.split(key, len(found)), strict=True):
        start_key, trace_key, norm_key = jax.random.split(one, 3)
        block = restrict(operator, params, layer)
        like = block_params(params, layer)
        size = trees.size(like)
        v0, most = trees.normal_like(start_key, like), max(max_matvecs, 2)
        ends = eigsh(block, v0, min(2, size), which="BE", rtol=rtol, max_matvecs=most, loop=loop)
        largest, smallest = float(ends.eigenvalues[0]), float(ends.eigenvalues[-1])
        converged = bool(ends.converged.all())
        total = trace(block, like, trace_key, num_matvecs=num_probes, loop=loop)
        norm = frobenius_norm(block, like, norm_key, num_matvecs=num_probes, loop=loop)
        rows.append(LayerCurvature(layer.name, size, largest, smallest, converged, total, norm))
    return rows


class _Cut(NamedTuple):
    """A layer of a stack. The position is an array, so that all layers of a stack share one program."""

    position: jax.Array
    axis: trees.Static


def _split(params: Params, where: Where | Layer) -> tuple[Params, Params, _Cut | None]:
    # The leaves of a block, all that is fixed, and how to cut the block out of a stack that is fixed, too.
    if not isinstance(where, Layer):
        return *paths.partition(params, where), None
    chosen, others = paths.partition(params, where.paths.__contains__)
    if where.position is None:
        return chosen, others, None
    cut = _Cut(jnp.asarray(where.position, jnp.int32), trees.Static(where.axis))
    return _take(chosen, cut), params, cut


def _take(stacks: Params, cut: _Cut | None) -> Params:
    if cut is None:
        return stacks
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, cut.position, cut.axis.value, keepdims=False), stacks
    )


def _join(block: Params, others: Params, cut: _Cut | None) -> Params:
    if cut is None:
        return paths.combine(block, others)
    return jax.tree.map(
        lambda x, whole: (
            whole if x is None else jax.lax.dynamic_update_index_in_dim(whole, x, cut.position, cut.axis.value)
        ),
        block,
        others,
        is_leaf=lambda x: x is None,
    )


def _with_fixed(
    function: Callable[..., Any], others: Params, cut: _Cut | None, block: Params, batch: Any
) -> Any:
    return function(_join(block, others, cut), batch)


def _padded_product(operator: MatVec, zeros: Params, cut: _Cut | None, vector: Params) -> Params:
    product = operator(_join(vector, zeros, cut))
    return jax.tree.map(
        lambda chosen, whole: None if chosen is None else _take(whole, cut),
        vector,
        product,
        is_leaf=lambda x: x is None,
    )
