"""Balls around one example, cut by the bounds: sizes, steepest directions, nearest and random points.

Everything here takes ONE perturbation of any shape and is mapped over examples by its caller, so that no
example can influence another. Sizes are sums over all entries, in at least float32.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees

Norm = Literal["linf", "l2", "l1"]
Bounds = tuple[float, float] | None
_FAR = 1e6  # for an entry that a bound holds back, in lengths of a step
_NEWTON_STEPS = 12  # to the radius of an L2 ball in a box; it comes from inside, so fewer leave the point inside


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
        lengths = _stretch(unit, epsilon, caps, largest)
    else:
        caps = lengths if caps is None else jnp.minimum(caps, lengths)
        lengths = jnp.clip(lengths - _threshold(lengths.ravel(), caps.ravel(), epsilon), 0, caps)
        lengths = lengths * _shrink(jnp.sum(lengths), epsilon)
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
    separate = norm == "linf" or bounds is None  # then the bounds can wait
    caps = None if separate else _room(jnp.sign(delta), inputs, inputs, bounds)
    return _moved(inputs, project(delta, epsilon, norm, caps), epsilon, norm, bounds)


def farthest(gradient: jax.Array, inputs: jax.Array, epsilon: Any, norm: Norm, bounds: Bounds) -> jax.Array:
    """Return the point in the ball around an example and between the bounds where a linear loss is highest.

    Args:
      gradient: Of the loss; any shape.
      inputs: The example.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``inputs``. L-infinity: epsilon along the sign; L2: along the gradient, an entry up to its
      bound and the others farther for it; L1: the entries with the largest gradient, each up to its bound. The
      example itself where the gradient is zero.

    Example:
      >>> farthest(jnp.array([3.0, 2.0, -1.0]), jnp.array([0.5, 0.5, 0.5]), 0.75, "l1", (0.0, 1.0))
      Array([1.  , 0.75, 0.5 ], dtype=float32)
    """
    signs = jnp.sign(gradient)
    lengths = jnp.abs(trees.upcast(gradient))
    caps = None if norm == "linf" or bounds is None else _room(signs, inputs, inputs, bounds)
    if norm == "linf":
        delta = epsilon * signs
    elif norm == "l2":
        delta = signs * _stretch(trees.normalize(lengths)[0], epsilon, caps, jnp.inf)
    else:
        caps = jnp.where(signs != 0, epsilon if caps is None else jnp.minimum(caps, epsilon), 0).ravel()
        order = jnp.argsort(-lengths.ravel())
        before = jnp.cumsum(caps[order]) - caps[order]
        taken = jnp.clip(epsilon - before, 0, caps[order])
        delta = signs * jnp.zeros_like(taken).at[order].set(taken).reshape(signs.shape)
    return _moved(inputs, delta, epsilon, norm, bounds)


def ascend(
    point: jax.Array,
    direction: jax.Array,
    length: Any,
    inputs: jax.Array,
    epsilon: Any,
    norm: Norm,
    bounds: Bounds,
) -> jax.Array:
    """Go a step up a linear loss, in the ball around an example and between the bounds.

    L-infinity and L2: along the steepest direction, then to the nearest point allowed; in L2 the length counts the
    entries that no bound holds back. L1: towards the point where the loss is highest, for the steepest direction
    moves one entry, which many steps would fill in vain.

    Args:
      point: Where the step begins, in the ball and between the bounds.
      direction: The gradient, or what stands for it.
      length: Of the step in ``norm``, a scalar.
      inputs: The example.
      epsilon: The radius, a scalar.
      norm: The norm of the ball.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``inputs``. The end of many such steps is ``farthest``, in every norm.

    References:
      Madry et al. (2017), arXiv:1706.06083, section 2.1; for L1, Frank and Wolfe (1956), "An algorithm for
      quadratic programming", with steps of bounded length.
    """
    if norm == "l1":
        way = trees.upcast(farthest(direction, inputs, epsilon, norm, bounds)) - trees.upcast(point)
        way = jnp.where(jnp.any(direction != 0), way, 0)
        part = jnp.minimum(length * trees.safe_inverse(size(way, norm)), 1)
        return within((point + part * way).astype(inputs.dtype), inputs, bounds)
    if norm == "linf" or bounds is None:
        step = steepest(direction, norm)
    else:
        free = _room(jnp.sign(direction), point, inputs, bounds) > 0
        scale = trees.normalize(jnp.where(free, trees.upcast(direction), 0))[1]
        # What is held back is pushed on all the same: else the projection would draw it away from its bound.
        step = jnp.clip(direction * trees.safe_inverse(scale), -_FAR, _FAR)
    return restrict(point + length * step, inputs, epsilon, norm, bounds)


def within(point: jax.Array, inputs: jax.Array, bounds: Bounds) -> jax.Array:
    """Bring a point between the bounds, widened to where the example is.

    Args:
      point: Any shape.
      inputs: The example.
      bounds: (lowest, highest), or None.

    Returns:
      An array like ``point``.

    Example:
      >>> within(jnp.array([-3.0, 5.0]), jnp.array([-2.0, 0.5]), (0.0, 1.0))
      Array([-2.,  1.], dtype=float32)
    """
    if bounds is None:
        return point
    low, high = widened(inputs, bounds)
    return jnp.clip(point, low, high)


def widened(inputs: jax.Array, bounds: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
    """Return the bounds of each entry of an example: those given, or the entry itself where it lies outside.

    Args:
      inputs: Any shape.
      bounds: (lowest, highest).

    Returns:
      ``(lowest, highest)``, each like ``inputs``.
    """
    return jnp.minimum(inputs, bounds[0]), jnp.maximum(inputs, bounds[1])


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


def _moved(inputs: jax.Array, delta: jax.Array, epsilon: Any, norm: Norm, bounds: Bounds) -> jax.Array:
    point = within((inputs + delta).astype(inputs.dtype), inputs, bounds)
    if norm == "linf":  # the sum was rounded, perhaps outwards
        outside = jnp.abs(trees.upcast(point) - trees.upcast(inputs)) > epsilon
        point = jnp.where(outside, jnp.nextafter(point, inputs), point)
    return point


def _room(signs: jax.Array, point: jax.Array, inputs: jax.Array, bounds: tuple[float, float]) -> jax.Array:
    # How far each entry of a point may go up (sign 1) or down (-1).
    low, high = widened(trees.upcast(inputs), bounds)
    point = trees.upcast(point)
    return jnp.maximum(jnp.where(signs > 0, high - point, point - low), 0)


def _stretch(unit: jax.Array, epsilon: Any, caps: Any, most: Any) -> jax.Array:
    # min(t unit, caps) with the t <= most at which its L2 norm is epsilon; entries of unit lie in [0, 1].
    if caps is None:
        return jnp.minimum(epsilon * trees.safe_inverse(size(unit, "l2")), most) * unit

    def newton(_: Any, t: jax.Array) -> jax.Array:
        full = t * unit >= caps
        left = jnp.maximum(epsilon**2 - jnp.sum(jnp.where(full, caps, 0) ** 2), 0)
        return jnp.maximum(t, jnp.sqrt(left * trees.safe_inverse(jnp.sum(jnp.where(full, 0, unit) ** 2))))

    t = jax.lax.fori_loop(0, _NEWTON_STEPS, newton, jnp.zeros((), unit.dtype))
    return jnp.minimum(jnp.minimum(t, most) * unit, caps)


def _threshold(lengths: jax.Array, caps: jax.Array, epsilon: Any) -> jax.Array:
    # The t >= 0 at which sum(clip(lengths - t, 0, caps)) is epsilon; 0 if that sum is smaller at once. As t falls
    # the sum grows by 1 for each entry between lengths and lengths - caps, so it is linear between these places.
    places = jnp.concatenate([lengths, lengths - caps])
    turns = jnp.concatenate([jnp.ones_like(lengths), -jnp.ones_like(lengths)])
    falling, turns = jax.lax.sort((-places, turns), num_keys=1)
    places = -falling
    slopes = jnp.cumsum(turns)
    following = jnp.append(places[1:], 0)
    sums = jnp.cumsum(slopes * (places - following))  # at `following`
    at = jnp.argmax(sums >= epsilon)
    threshold = following[at] + (sums[at] - epsilon) * trees.safe_inverse(slopes[at])
    return jnp.where(sums[-1] > epsilon, jnp.maximum(threshold, 0), 0)


def _shrink(length: jax.Array, epsilon: Any) -> jax.Array:
    return jnp.where(length > epsilon, epsilon * trees.safe_inverse(length), 1)
