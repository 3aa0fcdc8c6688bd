"""The highest point of a linear loss in a ball cut by bounds, and steps that lead there.

Everything here takes ONE example of any shape and is mapped over examples by its caller.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import programs, trees
from hessabs.attacks import norms
from hessabs.attacks.norms import Bounds, Norm

_FAR = 1e6  # for an entry that a bound holds back, in lengths of a step


def farthest(gradient: jax.Array, inputs: jax.Array, epsilon: Any, norm: Norm, bounds: Bounds) -> jax.Array:
    """Return the point in the ball around an example and between the bounds where a linear loss is highest.

    L-infinity: epsilon along the sign; L2: along the gradient, an entry up to its bound and the others farther
    for it; L1: the entries with the largest gradient, each up to its bound. The example itself where the
    gradient is zero.

    Example:
      >>> farthest(jnp.array([3.0, 2.0, -1.0]), jnp.array([0.5, 0.5, 0.5]), 0.75, "l1", (0.0, 1.0))
      Array([1.  , 0.75, 0.5 ], dtype=float32)
    """
    signs = jnp.sign(gradient)
    lengths = jnp.abs(trees.upcast(gradient))
    caps = None if norm == "linf" else norms.room(signs, inputs, inputs, bounds)
    if norm == "linf":
        delta = epsilon * signs
    elif norm == "l2":
        delta = signs * norms.stretch(trees.normalize(lengths)[0], epsilon, caps, jnp.inf)
    else:
        caps = jnp.where(signs != 0, epsilon if caps is None else jnp.minimum(caps, epsilon), 0).ravel()
        order = jnp.argsort(-lengths.ravel())
        before = jnp.cumsum(caps[order]) - caps[order]
        taken = jnp.clip(epsilon - before, 0, caps[order])
        delta = signs * jnp.zeros_like(taken).at[order].set(taken).reshape(signs.shape)
    return norms.add(inputs, delta, bounds, epsilon if norm == "linf" else None)


@programs.jit
def along(inputs: jax.Array, ascent: jax.Array, epsilon: jax.Array, where: trees.Static) -> jax.Array:
    """Move every example of a batch to its ``farthest`` point; ``where`` is (norm, bounds).

    An entry of the ascent (a gradient, or what replaces it) that is not finite counts as 0.
    """
    return jax.vmap(lambda x, g: farthest(trees.finite_or_zero(g), x, epsilon, *where.value))(inputs, ascent)


def ascend(
    point: jax.Array,
    direction: jax.Array,
    length: Any,
    inputs: jax.Array,
    epsilon: Any,
    norm: Norm,
    bounds: Bounds,
) -> jax.Array:
    """Go a step of a length up a linear loss, in the ball around an example and between the bounds.

    L-infinity and L2: along the steepest direction, then to the nearest point allowed; in L2 the length counts
    the entries that no bound holds back. L1: towards the point where the loss is highest, for the steepest
    direction moves one entry, which many steps would fill in vain. The end of many such steps is ``farthest``,
    in every norm.

    References:
      Madry et al. (2017), arXiv:1706.06083, section 2.1; for L1, Frank and Wolfe (1956), "An algorithm for
      quadratic programming", with steps of bounded length.
    """
    if norm == "l1":
        way = trees.upcast(farthest(direction, inputs, epsilon, norm, bounds)) - trees.upcast(point)
        way = jnp.where(jnp.any(direction != 0), way, 0)
        part = jnp.minimum(length * trees.safe_inverse(norms.size(way, norm)), 1)
        return norms.within((point + part * way).astype(inputs.dtype), inputs, bounds)
    room = None if norm == "linf" else norms.room(jnp.sign(direction), point, inputs, bounds)
    if room is None:
        step = norms.steepest(direction, norm)
    else:
        scale = trees.normalize(jnp.where(room > 0, trees.upcast(direction), 0))[1]
        # What is held back is pushed on all the same: else the projection would draw it away from its bound.
        step = jnp.clip(direction * trees.safe_inverse(scale), -_FAR, _FAR)
    return norms.restrict(point + length * step, inputs, epsilon, norm, bounds)
