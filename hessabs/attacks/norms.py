"""Balls around one example, cut by the bounds: sizes, steepest directions, nearest and random points.

Everything here takes ONE perturbation of any shape and is mapped over examples by its caller, so that no
example can influence another. Sizes are sums over all entries, in at least float32.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks import boxes, radii
from hessabs.attacks.boxes import Bounds

Norm = Literal["linf", "l2", "l1"]


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

    For L1 that is one entry, the one with the largest gradient.

    Args:
      gradient: Any shape.
      norm: The norm of the perturbation.

    Returns:
      An array like ``gradient``.

    Example:
      >>> steepest(jnp.array([3.0, -4.0]), "l2")
      Array([ 0.6, -0.8], dtype=float32)
    """
    if norm == "linf":
        return jnp.sign(gradient)
    if norm == "l2":
        return trees.normalize(gradient)[0]
    largest = jnp.argmax(jnp.abs(gradient))
    chosen = (jnp.arange(gradient.size) == largest).reshape(gradient.shape)
    return jnp.where(chosen, jnp.sign(gradient), 0)


def project(delta: jax.Array, epsilon: Any, norm: Norm, caps: Any = None) -> jax.Array:
    """Return the nearest perturbation (in L2) of norm epsilon at most, whose entries are no larger than caps.

    Args:
      delta: Any shape.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.
      caps: The largest size of each entry, at least 0, a scalar or like ``delta``; None for none.

    Returns:
      An array like ``delta``; no entry has changed its sign.

    Example:
      >>> project(jnp.array([3.0, -4.0]), 1.0, "l1")
      Array([ 0., -1.], dtype=float32)
      >>> project(jnp.array([3.0, -4.0]), 1.0, "l1", 0.75)
      Array([ 0.25, -0.75], dtype=float32)

    References:
      Duchi et al. (2008), "Efficient projections onto the l1-ball", figure 1; with caps, Croce and Hein (2021),
      arXiv:2103.01208, proposition 2.2.
    """
    wide = trees.upcast(delta)
    lengths = jnp.abs(wide)
    if norm == "linf":
        lengths = jnp.minimum(lengths, epsilon if caps is None else jnp.minimum(caps, epsilon))
    elif norm == "l2":
        largest = jnp.max(lengths)  # so that no square overflows or vanishes
        unit = lengths * trees.safe_inverse(largest)
        lengths = radii.stretch(unit, epsilon, caps, largest)
    else:
        caps = lengths if caps is None else jnp.minimum(caps, lengths)
        lengths = jnp.clip(lengths - radii.threshold(lengths.ravel(), caps.ravel(), epsilon), 0, caps)
        lengths = lengths * radii.shrink(jnp.sum(lengths), epsilon)
    return (jnp.sign(wide) * lengths).astype(delta.dtype)


def restrict(point: jax.Array, inputs: jax.Array, epsilon: Any, norm: Norm, bounds: Bounds) -> jax.Array:
    """Return the nearest point (in L2) that lies in the ball around an example and between the bounds.

    The one projection of all attacks. An entry of the example that lies outside of the bounds may stay where it
    is, and gets no farther out: what an attack does not move stays the same.

    Args:
      point: Any shape.
      inputs: The example.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``inputs``.

    Example:
      >>> restrict(jnp.array([1.95, 1.0, 0.5]), jnp.array([0.95, 0.5, 0.5]), 1.0, "l1", (0.0, 1.0))
      Array([1. , 1. , 0.5], dtype=float32)
    """
    delta = trees.upcast(point) - trees.upcast(inputs)
    # In L-infinity the bounds can wait.
    caps = None if norm == "linf" else boxes.room(jnp.sign(delta), inputs, inputs, bounds)
    return boxes.add(inputs, project(delta, epsilon, norm, caps), bounds, epsilon if norm == "linf" else None)


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
