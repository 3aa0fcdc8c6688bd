"""Balls around one example: sizes, steepest directions, projections and random points.

Everything here takes ONE perturbation of any shape and is mapped over examples by its caller, so that no
example can influence another. Sizes are sums over all entries, in at least float32.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from hessabs import trees

Norm = Literal["linf", "l2", "l1"]
Bounds = tuple[float, float] | None
_L1_FRACTION = 0.05  # entries that an L1 step moves: between one (weak) and all (not steepest)


def size(delta: jax.Array, norm: Norm) -> jax.Array:
    """Return the norm of one perturbation.

    Args:
      delta: Any shape.
      norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Returns:
      A scalar in at least float32.

    Example:
      >>> [float(size(jnp.array([3.0, -4.0]), norm)) for norm in ("linf", "l2", "l1")]
      [4.0, 5.0, 7.0]
    """
    delta = jnp.abs(trees.upcast(delta))
    if norm == "linf":
        return jnp.max(delta)
    if norm == "l1":
        return jnp.sum(delta)
    return trees.normalize(delta)[1]


def dual(norm: Norm) -> Norm:
    """Return the norm that measures gradients where ``norm`` measures perturbations.

    Args:
      norm: Of perturbations.

    Returns:
      Its dual norm.
    """
    duals: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
    return duals[norm]


def steepest(gradient: jax.Array, norm: Norm) -> jax.Array:
    """Return the perturbation of norm 1 along which a linear loss rises fastest; 0 for a zero gradient.

    For L1 that would be one entry; the 5 % largest share the step equally, which is far faster over many steps.

    Args:
      gradient: Any shape.
      norm: The norm of the perturbation.

    Returns:
      An array like ``gradient``.

    Example:
      >>> steepest(jnp.array([3.0, -4.0]), "l2")
      Array([ 0.6, -0.8], dtype=float32)

    References:
      Tramer and Boneh (2019), arXiv:1904.13000, section 3.2, for L1.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    if norm == "l2":
        return trees.normalize(gradient)[0]
    flat = jnp.abs(trees.upcast(gradient)).ravel()
    count = max(1, round(_L1_FRACTION * flat.size))
    threshold = jax.lax.top_k(flat, count)[0][-1]
    chosen = jnp.where(jnp.abs(gradient) >= threshold, jnp.sign(gradient), 0)
    return (chosen * trees.safe_inverse(jnp.sum(jnp.abs(chosen)))).astype(gradient.dtype)


def project(delta: jax.Array, epsilon: Any, norm: Norm) -> jax.Array:
    """Return the nearest perturbation (in L2) of norm epsilon at most.

    Args:
      delta: Any shape.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.

    Returns:
      An array like ``delta``.

    Example:
      >>> project(jnp.array([3.0, -4.0]), 1.0, "l1")
      Array([ 0., -1.], dtype=float32)

    References:
      Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1.
    """
    wide = trees.upcast(delta)
    if norm == "linf":
        inside = jnp.clip(wide, -epsilon, epsilon)
    elif norm == "l2":
        inside = wide * _shrink(size(wide, "l2"), epsilon)
    else:
        ordered = -jnp.sort(-jnp.abs(wide).ravel())
        excess = (jnp.cumsum(ordered) - epsilon) / jnp.arange(1, ordered.size + 1, dtype=wide.dtype)
        threshold = jnp.maximum(excess[jnp.maximum(jnp.sum(ordered > excess) - 1, 0)], 0)
        shrunk = jnp.sign(wide) * jnp.maximum(jnp.abs(wide) - threshold, 0)
        inside = shrunk * _shrink(size(shrunk, "l1"), epsilon)
    return inside.astype(delta.dtype)


def restrict(point: jax.Array, inputs: jax.Array, epsilon: Any, norm: Norm, bounds: Bounds) -> jax.Array:
    """Bring a point into the ball around an example and between the bounds.

    Args:
      point: Any shape.
      inputs: The example, between the bounds itself.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``inputs``. Clipping after the projection keeps both: it moves each entry towards the
      example.
    """
    point = (inputs + project(point - inputs, epsilon, norm)).astype(inputs.dtype)
    if bounds is not None:
        point = jnp.clip(point, *bounds)
    if norm == "linf":  # the sum was rounded, perhaps outwards
        outside = jnp.abs(trees.upcast(point) - trees.upcast(inputs)) > epsilon
        point = jnp.where(outside, jnp.nextafter(point, inputs), point)
    return point


def random_in_ball(key: jax.Array, like: jax.Array, epsilon: Any, norm: Norm) -> jax.Array:
    """Draw a perturbation uniformly from a ball.

    Args:
      key: Random key.
      like: An array of the shape and dtype wanted.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.

    Returns:
      An array like ``like``.
    """
    dtype = jnp.promote_types(like.dtype, jnp.float32)
    direction_key, radius_key = jax.random.split(key)
    if norm == "linf":
        unit = jax.random.uniform(direction_key, like.shape, dtype, -1, 1)
    elif norm == "l2":
        direction = trees.normalize(jax.random.normal(direction_key, like.shape, dtype))[0]
        unit = direction * jax.random.uniform(radius_key, (), dtype) ** (1 / like.size)
    else:  # size + 1 exponentials over their sum are uniform on the simplex; the last one is the slack
        parts = jax.random.exponential(direction_key, (like.size + 1,), dtype)
        signs = jax.random.rademacher(radius_key, like.shape, dtype)
        unit = signs * (parts[:-1] / jnp.sum(parts)).reshape(like.shape)
    return (epsilon * unit).astype(like.dtype)


def check_norm(norm: str, allowed: tuple[str, ...] = get_args(Norm)) -> None:
    """Raise unless a norm is one of those allowed.

    Args:
      norm: Its name.
      allowed: The names.

    Raises:
      ValueError: With both.
    """
    if norm not in allowed:
        raise ValueError(f"`norm` must be one of {list(allowed)}, got {norm!r}.")


def _shrink(length: jax.Array, epsilon: Any) -> jax.Array:
    return jnp.where(length > epsilon, epsilon * trees.safe_inverse(length), 1)
