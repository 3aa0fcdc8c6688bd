"""Operators that are made from functions: recomputed at each product, or linearised once and kept.

An operator is ``Partial(multiply, source, linearization)``. Its ``Source`` says which linear map it is and
holds what the map is made of, so that the map can be made again for a block of the params or for a part of the
batch. Its ``Linearization`` is None (each product computes the linearisation anew) or holds the residuals: all
that the map needs and that does not depend on the vector.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jax.tree_util import Partial

from hessabs import collectives, trees
from hessabs.convolutions import inner_jaxprs, split_kernel_gradients
from hessabs.curvature.precision import full_precision
from hessabs.typing import Batch, MatVec, Params

Linearize = bool | Literal["auto"]
MEMORY_BUDGET = 2**30
"""Bytes of residuals that ``linearize="auto"`` keeps: 1 GiB."""


class LinearMaps(NamedTuple):
    """Two ways to make one map, both ``(functions, params, batch, axis_name) -> vector -> vector``."""

    product: Callable[..., MatVec]  # cheapest when it is applied once
    linear: Callable[..., MatVec]  # closes over its residuals: cheapest when it is applied again and again
    others: tuple[tuple[str, Callable[..., MatVec]], ...] = ()  # modes to name where it fails


class Source(NamedTuple):
    """What an operator is made of."""

    maps: trees.Static  # LinearMaps
    functions: tuple[Partial, ...]  # the first one takes (params, batch)
    params: Params
    batch: Batch
    axis: trees.Static  # the name of a mapped axis, or None


class Linearization(NamedTuple):
    """A linear map whose residuals are arrays of a pytree."""

    residuals: list[jax.Array]  # the constants of the jaxpr
    jaxpr: trees.Static  # Jaxpr of the linear map, leaves in, leaves out


def make_operator(source: Source, linearize: Linearize, memory_budget: int) -> MatVec:
    """Make an operator of its source.

    Args:
      source: Its params are checked to be floating-point arrays.
      linearize: Keep the residuals (True), compute them at each product (False), or ``"auto"``: keep them when
        they fit the budget, and otherwise compute them for one part of the batch after another.
      memory_budget: Bytes, for ``"auto"``.

    Returns:
      An operator: callable, and a pytree.

    Raises:
      ValueError: If a param is no floating-point array, ``linearize`` is unknown or the budget not positive.
    """
    if linearize not in (True, False, "auto"):
        raise ValueError(f'`linearize` must be True, False or "auto", got {linearize!r}.')
    if not memory_budget > 0:
        raise ValueError(f"`memory_budget` must be positive, in bytes, got {memory_budget}.")
    trees.check_floating(source.params, "params")
    if linearize == "auto" and residual_bytes(source) > memory_budget:
        from hessabs.curvature.dataset import split_product  # it builds on this module

        return Partial(split_product, source, trees.Static(_examples_within(source, memory_budget)))
    # Under a mapped axis nothing is compiled here: the axis is bound outside.
    mapped = source.axis.value is not None
    linearization = None
    if linearize:
        linearization = _linearize(source) if mapped else _jitted_linearize(source)
    return Partial(multiply if mapped else _jitted_multiply, source, linearization)


def source_of(operator: Any) -> tuple[Source, bool] | None:
    """Return what an operator was made of and whether it was linearised; None for any other callable.

    Args:
      operator: Any callable.

    Returns:
      Its source and True if a linearisation is stored, or None.
    """
    if isinstance(operator, Partial) and operator.func in (multiply, _jitted_multiply):
        source, linearization = operator.args
        return source, linearization is not None
    return None


def multiply(source: Source, linearization: Linearization | None, vector: Params) -> Params:
    """Multiply; the function of every operator that ``make_operator`` makes.

    Args:
      source: What the operator is made of.
      linearization: Its residuals, or None.
      vector: A pytree like the params.

    Returns:
      A pytree like the params.

    Raises:
      ValueError: If ``vector`` does not look like the params.
      TypeError: If a ``custom_vjp`` blocks forward mode.
    """
    trees.check_like(vector, source.params, "vector", "params", dtypes=True)
    if linearization is None:
        closed = _stage(source.maps.value.product, source)
    else:
        closed = ClosedJaxpr(linearization.jaxpr.value, linearization.residuals)
    leaves = jaxpr_as_fun(closed)(*jax.tree.leaves(vector))
    product = jax.tree.unflatten(jax.tree.structure(source.params), leaves)
    return collectives.pmean(product, source.axis.value)


def residual_bytes(source: Source) -> int:
    """Return the size of the residuals that a linearisation would keep, without computing anything.

    Args:
      source: What the operator is made of.

    Returns:
      Bytes, those of params and batch included where the map needs them.
    """
    shapes = jax.eval_shape(_linearize, source)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes.residuals))


def _linearize(source: Source) -> Linearization:
    # What `jax.linearize` returns is no pytree and cannot leave jit. Its jaxpr can: the residuals are the
    # jaxpr's constants, returned as arrays, and the jaxpr itself rides in the structure of the output. jit
    # caches the output's structure with the trace, so the same jaxpr object comes back for new params.
    closed = _stage(source.maps.value.linear, source)
    return Linearization(list(closed.consts), trees.Static(closed.jaxpr))


_jitted_linearize = jax.jit(_linearize)
_jitted_multiply = jax.jit(multiply)


def traceable(function: Callable[..., Any], *args: Any) -> bool:
    """Tell whether a function that differentiates can be traced, and compiled then.

    Args:
      function: Of pytrees of arrays.
      *args: Arrays, or their shapes and dtypes.

    Returns:
      False if tracing raises, or meets a ``custom_vjp`` in forward mode.
    """
    try:
        return not _is_blocked(jax.make_jaxpr(function)(*args))
    except Exception:
        return False


@full_precision
def _stage(make_map: Callable[..., MatVec], source: Source) -> ClosedJaxpr:
    error: Exception | None = None
    try:
        closed = _trace(make_map, source)
        if not _is_blocked(closed):
            return split_kernel_gradients(closed) if jax.default_backend() == "cpu" else closed
    except Exception as caught:
        error = caught
    # Which modes work depends on the function, so each is tried before it is named.
    arguments = source.functions, source.params, source.batch, source.axis.value
    others = [
        name
        for name, make_other in source.maps.value.others
        if traceable(lambda v, make=make_other: make(*arguments)(v), source.params)
    ]
    if error is not None and not others:
        raise error  # not a matter of the mode
    advice = f"Use {' or '.join(others)}" if others else "No other mode works with it"
    says = "" if error is None else f" JAX says: {error}"
    raise TypeError(
        "The loss or the model cannot be differentiated in this mode: a custom_vjp (flash attention, a Pallas "
        "kernel) has no forward mode, or its backward pass has no derivative. "
        f"{advice}, or give the function a jax.custom_jvp rule.{says}"
    ) from error


def _trace(make_map: Callable[..., MatVec], source: Source) -> ClosedJaxpr:
    linear_map = make_map(source.functions, source.params, source.batch, source.axis.value)
    leaves, treedef = jax.tree.flatten(source.params)
    return jax.make_jaxpr(lambda *x: jax.tree.leaves(linear_map(jax.tree.unflatten(treedef, x))))(*leaves)


def _is_blocked(closed: ClosedJaxpr) -> bool:
    # JAX leaves this primitive where forward mode met a custom_vjp, and complains only when it is compiled.
    return _holds(closed.jaxpr, "custom_lin")


def _holds(jaxpr: Jaxpr, primitive: str) -> bool:
    return any(eqn.primitive.name == primitive for eqn in jaxpr.eqns) or any(
        _holds(inner, primitive) for eqn in jaxpr.eqns for inner in inner_jaxprs(eqn)
    )


def _examples_within(source: Source, memory_budget: int) -> int:
    size = jax.tree.leaves(source.batch)[0].shape[0]
    while size > 1:
        size = (size + 1) // 2
        part = jax.tree.map(
            lambda x, size=size: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), source.batch
        )
        if residual_bytes(source._replace(batch=part)) <= memory_budget:
            break
    return size
