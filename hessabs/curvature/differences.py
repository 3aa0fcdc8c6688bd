"""Directional derivatives by central differences: where forward mode is blocked.

``J v`` is about ``||v|| (f(x + h u) - f(x - h u)) / (2 h)`` with ``u = v / ||v||``. Its error is ``h^2 / 6``
times the third derivative along u, plus ``eps ||f|| / h``, where eps is that of the dtype which f computes in,
and not that of its params: bfloat16 products of float32 params round every step to bfloat16. Both are balanced
by ``h = eps^(1/3)`` times the scale on which f changes, for which ``sqrt(s)`` is taken, with s the root of the
mean squared singular value of the params' matrices. It is near 1 in a network of the usual initialisation,
whatever its size. A scale of 1 would be right for a start near zero, and s for params in other units; the root
is never far off. Top eigenvectors turn a network fast and random vectors of many params slowly: these bear, and
with bfloat16 products need, a step several times longer.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxpr_as_fun

from hessabs import trees
from hessabs.jaxprs import equations

_PRODUCTS = ("dot_general", "conv_general_dilated")


def difference(function: Callable[[Any], Any], x: Any, step: float | None) -> Callable[[Any], Any]:
    """Make ``vector -> J vector`` of a function by central differences; the zero vector gives zero.

    ``step`` is how far to move to either side, the norm over all of ``x``; None to choose it as the file says.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(x)
    run = jaxpr_as_fun(program)
    h = _step_for(program.jaxpr, x) if step is None else jnp.asarray(step, jnp.float32)

    def derivative(vector: Any) -> Any:
        unit, norm = trees.normalize(vector)
        ahead, behind = (
            run(*jax.tree.leaves(jax.tree.map(lambda a, u, s=s: a + (s * u).astype(a.dtype), x, unit)))
            for s in (h, -h)
        )
        scale = norm / (2 * h)
        leaves = [
            (scale * (trees.upcast(a) - trees.upcast(b))).astype(a.dtype)
            for a, b in zip(ahead, behind, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    return derivative


def check_step(mode: str, step: float | None) -> None:
    """Raise unless a step is positive and one of finite differences."""
    if step is None:
        return
    if mode != "finite_difference":
        raise ValueError(f'`step` is one of mode="finite_difference", got mode={mode!r} and step={step}.')
    if not (isinstance(step, int | float) and math.isfinite(step) and step > 0):
        raise ValueError(f"`step` must be a positive number, got {step!r}.")


def rounding(jaxpr: Jaxpr, x: Any) -> float:
    """Return the rounding of the coarsest dtype that a program multiplies in."""
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(x)]
    products = (eqn for eqn in equations(jaxpr) if eqn.primitive.name in _PRODUCTS)
    operands = [atom.aval.dtype for eqn in products for atom in eqn.invars]  # type: ignore[attr-defined]
    dtypes += [dtype for dtype in operands if jnp.issubdtype(dtype, jnp.floating)]
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _step_for(jaxpr: Jaxpr, x: Any) -> jax.Array:
    # A matrix has as many singular values as its shorter side, a vector (a scale, say) as it has entries.
    count = sum(
        leaf.size / (max(leaf.shape[-1], leaf.size // leaf.shape[-1]) if leaf.ndim > 1 else 1)
        for leaf in jax.tree.leaves(x)
        if leaf.size
    )
    scale = trees.normalize(x)[1] / math.sqrt(count)
    return rounding(jaxpr, x) ** (1 / 3) * jnp.sqrt(jnp.where(scale > 0, scale, 1))
