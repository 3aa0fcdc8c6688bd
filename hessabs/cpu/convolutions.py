"""Kernel gradients of convolutions in the form that XLA runs fast on the CPU.

The gradient of a kernel is itself a convolution, in which the batch takes the place of the channels that are
summed over and the kernel has the size of the image. On the CPU XLA needs many times longer for it when that
batch is large (measured: a 5x5 kernel, 16 to 32 channels, 14x14 pixels: 174 ms for 512 examples at once, 30 ms
as eight times 64). The sum over the batch may be cut: it is a sum of this one primitive, whatever the loss does
with its examples. Smaller parts run faster still and take longer to compile.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxpr_as_fun, jaxprs_in_params

from hessabs.jaxprs import equations

F = TypeVar("F", bound=Callable[..., Any])
_EXAMPLES = 32  # in a part


def in_parts(function: F) -> F:
    """Cut the sums over the batch in the kernel gradients of a function that is to be jitted, on the CPU."""
    if jax.default_backend() != "cpu":
        return function

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jaxpr_as_fun(split_kernel_gradients(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return run  # type: ignore[return-value]


def split_kernel_gradients(closed: ClosedJaxpr, *, examples: int = _EXAMPLES) -> ClosedJaxpr:
    """Cut the sums over the batch in the kernel gradients of a program, inside its loops and calls too.

    Returns the program itself if there is nothing to cut.
    """
    if not any(_holds_long_sum(eqn, examples) for eqn in closed.jaxpr.eqns):
        return closed
    equations = [_split(eqn, examples) for eqn in closed.jaxpr.eqns]
    return ClosedJaxpr(closed.jaxpr.replace(eqns=equations), closed.consts)


def _split(eqn: JaxprEqn, examples: int) -> JaxprEqn:
    if _is_long_sum(eqn, examples):
        parts = jax.jit(lambda images, cotangents: _in_parts(eqn, images, cotangents, examples))
        call = jax.make_jaxpr(parts)(*(atom.aval for atom in eqn.invars)).jaxpr.eqns[0]
        return call.replace(invars=eqn.invars, outvars=eqn.outvars)
    if _holds_long_sum(eqn, examples):
        return eqn.replace(params={name: _split_inside(value, examples) for name, value in eqn.params.items()})
    return eqn


def _in_parts(eqn: JaxprEqn, images: Any, cotangents: Any, examples: int) -> Any:
    numbers = eqn.params["dimension_numbers"]
    size = images.shape[numbers.lhs_spec[1]]
    total = None
    for start in range(0, size, examples):
        end = min(start + examples, size)
        part = eqn.primitive.bind(
            jax.lax.slice_in_dim(images, start, end, axis=numbers.lhs_spec[1]),
            jax.lax.slice_in_dim(cotangents, start, end, axis=numbers.rhs_spec[1]),
            **eqn.params,
        )
        total = part if total is None else total + part
    return total


def _is_long_sum(eqn: JaxprEqn, examples: int) -> bool:
    if eqn.primitive.name != "conv_general_dilated":
        return False
    numbers, params = eqn.params["dimension_numbers"], eqn.params
    images, kernel, out = (atom.aval.shape for atom in (*eqn.invars, *eqn.outvars))  # type: ignore[attr-defined]
    summed = images[numbers.lhs_spec[1]]
    # What is wider than its result is no kernel of a network but an image in the place of one.
    reach = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    result = [out[axis] for axis in numbers.out_spec[2:]]
    plain = params["feature_group_count"] == params["batch_group_count"] == 1
    return plain and summed > examples and any(r > w for r, w in zip(reach, result, strict=True))


def _holds_long_sum(eqn: JaxprEqn, examples: int) -> bool:
    return _is_long_sum(eqn, examples) or any(
        _is_long_sum(one, examples) for inner in jaxprs_in_params(eqn.params) for one in equations(inner)
    )


def _split_inside(value: Any, examples: int) -> Any:
    if isinstance(value, ClosedJaxpr):
        return split_kernel_gradients(value, examples=examples)
    if isinstance(value, Jaxpr) and not value.constvars:
        split = split_kernel_gradients(ClosedJaxpr(value, ()), examples=examples)
        return value if split.consts else split.jaxpr
    if isinstance(value, tuple) and any(
        isinstance(x, (Jaxpr, ClosedJaxpr)) for x in value
    ):  # the branches of a cond
        return tuple(_split_inside(x, examples) for x in value)
    return value
