"""Operators that are made from functions: recomputed at each product, or linearised once and kept.

The ``Source`` of an operator holds what its linear map is made of, so that the map can be made again for a
block of the params or for a part of the batch. Its ``Linearization`` is None (each product computes it anew) or
holds the residuals: all that the map needs and that does not depend on the vector.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial

from hessabs import batch_axis, collectives, programs, trees
from hessabs.cpu.convolutions import split_kernel_gradients
from hessabs.curvature.differences import check_step
from hessabs.curvature.losses import without_aux
from hessabs.curvature.precision import full_precision
from hessabs.jaxprs import equations
from hessabs.typing import Batch, MatVec, Operator, Params

Weight = Callable[[Batch], Any] | None
"""``weight(batch)``: what the mean of a loss is over, an array or its sum; None for the number of examples."""


class LinearMaps(NamedTuple):
    """Two ways to make one map, both ``(functions, params, batch) -> vector -> vector``."""

    product: Callable[..., MatVec]  # cheapest when it is applied once
    linear: Callable[..., MatVec] | None  # closes over its residuals: cheapest when it is applied often
    others: tuple[tuple[str, Callable[..., MatVec]], ...] = ()  # modes to name where it fails


Modes = Mapping[str, LinearMaps | Callable[[float | None], LinearMaps]]
"""The maps of each mode of an operator; those of finite differences by their step."""


class Source(NamedTuple):
    """What an operator is made of."""

    maps: trees.Static  # LinearMaps
    functions: tuple[Partial, ...]  # the first one takes (params, batch)
    params: Params
    batch: Batch  # None where batches are read later
    axis: trees.Static  # the name of a mapped axis, or None
    weight: Partial | None  # of (batch): what the functions' mean is over; None for the number of examples


class Linearization(NamedTuple):
    """A linear map whose residuals are arrays of a pytree."""

    residuals: list[jax.Array]  # the constants of the jaxpr
    jaxpr: trees.Static  # Jaxpr of the linear map, leaves in, leaves out


def make_source(
    modes: Modes,
    functions: tuple[Callable[..., Any], ...],
    params: Params,
    batch: Batch,
    *,
    mode: str | None = None,
    step: float | None = None,
    has_aux: bool = False,
    axis_name: str | None = None,
    weight: Weight = None,
) -> Source:
    """Check the options of an operator, as ``hessian`` has them, and say what it is made of.

    No mode is the first one; ``has_aux`` is of the first function.
    """
    trees.check_floating(params, "params")
    mode = next(iter(modes)) if mode is None else mode
    if mode not in modes:
        raise ValueError(f"`mode` must be one of {', '.join(modes)}, got {mode!r}.")
    check_step(mode, step)
    make_maps = modes[mode]
    maps = trees.Static(make_maps if isinstance(make_maps, LinearMaps) else make_maps(step))
    first, *rest = functions
    partials = (without_aux(first, has_aux), *map(trees.as_partial, rest))
    return Source(maps, partials, params, batch, trees.Static(axis_name), trees.as_partial(weight))


def make(source: Source, *, linearize: bool) -> Operator:
    """Make an operator of its source: keep the residuals, or compute them at each product."""
    # Under a mapped axis nothing is compiled here: the axis is bound outside.
    mapped = source.axis.value is not None
    linearization = None
    if linearize:
        linearization = _linearize(source) if mapped else _jitted_linearize(source)
    return Operator(source, (linearization,), multiply if mapped else _jitted_multiply)


def multiply(source: Source, linearization: Linearization | None, vector: Params) -> Params:
    """Multiply; with a mapped axis each device by what its own examples make, and one collective averages."""
    trees.check_like(vector, source.params, "vector", "params", dtypes=True)
    if linearization is None:
        closed = _stage(source.maps.value.product, source)
    else:
        closed = ClosedJaxpr(linearization.jaxpr.value, linearization.residuals)
    axis = source.axis.value
    leaves = jaxpr_as_fun(closed)(*jax.tree.leaves(collectives.own(vector, axis)))
    product = jax.tree.unflatten(jax.tree.structure(source.params), leaves)
    if axis is None or source.weight is None:
        return collectives.pmean(product, axis)
    return collectives.weighted_mean(product, batch_axis.total_weight(source.weight, source.batch), axis)


def residual_bytes(source: Source) -> int:
    """Return the size of the residuals that a linearisation would keep, without computing anything."""
    shapes = _jitted_linearize.eval_shape(source)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes.residuals))


def _linearize(source: Source) -> Linearization:
    # What `jax.linearize` returns is no pytree and cannot leave jit. Its jaxpr can: the residuals are the
    # jaxpr's constants, returned as arrays, and the jaxpr itself rides in the structure of the output. jit
    # caches the output's structure with the trace, so the same jaxpr object comes back for new params.
    closed = _stage(source.maps.value.linear, source)
    return Linearization(list(closed.consts), trees.Static(closed.jaxpr))


_jitted_linearize = programs.jit(_linearize)
_jitted_multiply = programs.jit(multiply)


def traceable(function: Callable[..., Any], *args: Any) -> bool:
    """Tell whether a function that differentiates can be traced, without a ``custom_vjp`` in forward mode."""
    try:
        return not _is_blocked(jax.make_jaxpr(function)(*args))
    except Exception:
        return False


@full_precision
def _stage(make_map: Callable[..., MatVec], source: Source) -> ClosedJaxpr:
    params = collectives.own(source.params, source.axis.value)
    error: Exception | None = None
    try:
        closed = _trace(make_map, source._replace(params=params))
        if not _is_blocked(closed):
            return split_kernel_gradients(closed) if jax.default_backend() == "cpu" else closed
    except Exception as caught:
        error = caught
    # Which modes work depends on the function, so each is tried before it is named.
    arguments = source.functions, params, source.batch
    others = [
        name
        for name, make_other in source.maps.value.others
        if traceable(lambda v, make=make_other: make(*arguments)(v), params)
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
    linear_map = make_map(source.functions, source.params, source.batch)
    leaves, treedef = jax.tree.flatten(source.params)
    return jax.make_jaxpr(lambda *x: jax.tree.leaves(linear_map(jax.tree.unflatten(treedef, x))))(*leaves)


def _is_blocked(closed: ClosedJaxpr) -> bool:
    # JAX leaves this primitive where forward mode met a custom_vjp, and complains only when it is compiled.
    return any(eqn.primitive.name == "custom_lin" for eqn in equations(closed.jaxpr))
