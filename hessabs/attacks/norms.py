"""Balls around one example, cut by the bounds: nearest, random and highest points, and steps that lead there.

Everything here takes ONE example or perturbation of any shape and is mapped over examples by its caller, so
that no example can influence another. Sizes are sums over all entries, in at least float32. An example that
lies outside of the bounds is not brought in: they are widened to it.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from hessabs import programs, trees

Norm = Literal["linf", "l2", "l1"]
Bounds = tuple[float, float] | None
"""(lowest, highest) value of an input, in the units of the batch."""
_NEWTON_STEPS = 12  # each fills all entries that the last factor brought to their caps: few are ever needed
_FAR = 1e6  # for an entry that a bound holds back, in lengths of a step


class Ball(NamedTuple):
    """Where points may lie: a pytree, so that another epsilon compiles nothing."""

    epsilon: Any  # a float, traced where a step is compiled
    shape: trees.Static  # (norm, bounds)

    @property
    def norm(self) -> Norm:
        """The norm of epsilon."""
        return self.shape.value[0]

    @property
    def bounds(self) -> Bounds:
        """What cuts the ball."""
        return self.shape.value[1]


def size(delta: jax.Array, norm: Norm) -> jax.Array:
    """Return the norm of one perturbation."""
    delta = jnp.abs(trees.upcast(delta))
    if norm == "linf":
        return jnp.max(delta)
    return jnp.sum(delta) if norm == "l1" else trees.normalize(delta)[1]


def slope(gradient: jax.Array, norm: Norm) -> jax.Array:
    """Return how much a perturbation of norm 1 raises a linear loss at most: the dual norm of its gradient."""
    duals: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
    return size(gradient, duals[norm])


def steepest(gradient: jax.Array, norm: Norm) -> jax.Array:
    """Return the perturbation of norm 1 along which a linear loss rises fastest; 0 for a zero gradient.

    For L1 that is one entry, the one with the largest gradient.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    if norm == "l2":
        return trees.normalize(gradient)[0]
    largest = jnp.argmax(jnp.abs(gradient))
    chosen = (jnp.arange(gradient.size) == largest).reshape(gradient.shape)
    return jnp.where(chosen, jnp.sign(gradient), 0)


def random_in_ball(key: jax.Array, like: jax.Array, epsilon: Any, norm: Norm) -> jax.Array:
    """Draw a perturbation uniformly from a ball."""
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


def restrict(point: jax.Array, inputs: jax.Array, ball: Ball) -> jax.Array:
    """Return the nearest point (in L2) that lies in the ball around an example and between the bounds.

    The one projection of all attacks. An entry of the example that lies outside of the bounds may stay where it
    is, and gets no farther out: what an attack does not move stays the same.
    """
    delta = trees.upcast(point) - trees.upcast(inputs)
    # In L-infinity the bounds can wait.
    caps = None if ball.norm == "linf" else _room(jnp.sign(delta), inputs, inputs, ball.bounds)
    return _add(inputs, project(delta, ball.epsilon, ball.norm, caps), ball)


def project(delta: jax.Array, epsilon: Any, norm: Norm, caps: Any = None) -> jax.Array:
    """Return the nearest perturbation (in L2) of norm epsilon at most, whose entries are no larger than caps.

    No entry changes its sign.

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
        lengths = _stretch(lengths * trees.safe_inverse(largest), epsilon, caps, largest)
    else:
        caps = lengths if caps is None else jnp.minimum(caps, lengths)
        lengths = jnp.clip(lengths - _threshold(lengths.ravel(), caps.ravel(), epsilon), 0, caps)
        total = jnp.sum(lengths)
        lengths = lengths * jnp.where(total > epsilon, epsilon * trees.safe_inverse(total), 1)
    return (jnp.sign(wide) * lengths).astype(delta.dtype)


def farthest(gradient: jax.Array, inputs: jax.Array, ball: Ball) -> jax.Array:
    """Return the point in the ball around an example and between the bounds where a linear loss is highest.

    L-infinity: epsilon along the sign; L2: along the gradient, an entry up to its bound and the others farther
    for it; L1: the entries with the largest gradient, each up to its bound. The example itself where the
    gradient is zero.

    Example:
      >>> ball = Ball(0.75, trees.Static(("l1", (0.0, 1.0))))
      >>> farthest(jnp.array([3.0, 2.0, -1.0]), jnp.array([0.5, 0.5, 0.5]), ball)
      Array([1.  , 0.75, 0.5 ], dtype=float32)
    """
    epsilon, norm, bounds = ball.epsilon, ball.norm, ball.bounds
    signs = jnp.sign(gradient)
    lengths = jnp.abs(trees.upcast(gradient))
    caps = None if norm == "linf" else _room(signs, inputs, inputs, bounds)
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
    return _add(inputs, delta, ball)


@programs.jit
def along(inputs: jax.Array, ascent: jax.Array, ball: Ball) -> jax.Array:
    """Move every example of a batch to its ``farthest`` point.

    An entry of the ascent (a gradient, or what replaces it) that is not finite counts as 0.
    """
    return jax.vmap(lambda x, g: farthest(trees.finite_or_zero(g), x, ball))(inputs, ascent)


def ascend(point: jax.Array, direction: jax.Array, length: Any, inputs: jax.Array, ball: Ball) -> jax.Array:
    """Go a step of a length up a linear loss, in the ball around an example and between the bounds.

    L-infinity and L2: along the steepest direction, then to the nearest point allowed; in L2 the length counts
    the entries that no bound holds back. L1: towards the point where the loss is highest, for the steepest
    direction moves one entry, which many steps would fill in vain. The end of many such steps is ``farthest``,
    in every norm.

    References:
      Madry et al. (2017), arXiv:1706.06083, section 2.1; for L1, Frank and Wolfe (1956), "An algorithm for
      quadratic programming", with steps of bounded length.
    """
    norm, bounds = ball.norm, ball.bounds
    if norm == "l1":
        way = trees.upcast(farthest(direction, inputs, ball)) - trees.upcast(point)
        way = jnp.where(jnp.any(direction != 0), way, 0)
        part = jnp.minimum(length * trees.safe_inverse(size(way, norm)), 1)
        return within((point + part * way).astype(inputs.dtype), inputs, bounds)
    room = None if norm == "linf" else _room(jnp.sign(direction), point, inputs, bounds)
    if room is None:
        step = steepest(direction, norm)
    else:
        scale = trees.normalize(jnp.where(room > 0, trees.upcast(direction), 0))[1]
        # What is held back is pushed on all the same: else the projection would draw it away from its bound.
        step = jnp.clip(direction * trees.safe_inverse(scale), -_FAR, _FAR)
    return restrict(point + length * step, inputs, ball)


def widened(inputs: jax.Array, bounds: tuple[float, float]) -> tuple[jax.Array, jax.Array]:
    """Return the bounds of each entry of an example: those given, or the entry itself where it lies outside."""
    return jnp.minimum(inputs, bounds[0]), jnp.maximum(inputs, bounds[1])


def within(point: jax.Array, inputs: jax.Array, bounds: Bounds) -> jax.Array:
    """Bring a point between the bounds, widened to where the example is."""
    return point if bounds is None else jnp.clip(point, *widened(inputs, bounds))


def _room(signs: jax.Array, point: jax.Array, inputs: jax.Array, bounds: Bounds) -> jax.Array | None:
    # How far each entry of a point may go up (sign 1) or down, at least 0; None without bounds.
    if bounds is None:
        return None
    low, high = widened(trees.upcast(inputs), bounds)
    point = trees.upcast(point)
    return jnp.maximum(jnp.where(signs > 0, high - point, point - low), 0)


def _add(inputs: jax.Array, delta: jax.Array, ball: Ball) -> jax.Array:
    # In the dtype of the example and between the bounds. In L-infinity a sum that is rounded out of the ball
    # goes back by one rounding.
    point = within((inputs + delta).astype(inputs.dtype), inputs, ball.bounds)
    if ball.norm != "linf":
        return point
    outside = jnp.abs(trees.upcast(point) - trees.upcast(inputs)) > ball.epsilon
    return jnp.where(outside, jnp.nextafter(point, inputs), point)


def _stretch(unit: jax.Array, epsilon: Any, caps: Any, most: Any) -> jax.Array:
    # Sizes of entries in [0, 1] scaled to an L2 norm of epsilon, where caps let them: `min(t unit, caps)`, t at
    # most `most`. Newton's iterations come from below, so one that has not converged gives a smaller norm.
    if caps is None:
        return jnp.minimum(epsilon * trees.safe_inverse(trees.normalize(unit)[1]), most) * unit

    def newton(_: Any, t: jax.Array) -> jax.Array:
        full = t * unit >= caps
        left = jnp.maximum(epsilon**2 - jnp.sum(jnp.where(full, caps, 0) ** 2), 0)
        return jnp.maximum(t, jnp.sqrt(left * trees.safe_inverse(jnp.sum(jnp.where(full, 0, unit) ** 2))))

    first = newton(0, jnp.zeros((), unit.dtype))  # unlike 0 it varies over devices as the perturbation does
    t = jax.lax.fori_loop(1, _NEWTON_STEPS, newton, first)
    return jnp.minimum(jnp.minimum(t, most) * unit, caps)


def _threshold(lengths: jax.Array, caps: jax.Array, epsilon: Any) -> jax.Array:
    # The t at which sum(clip(lengths - t, 0, caps)) is epsilon; 0 where that sum is smaller at once. As t falls
    # the sum grows by 1 for each entry between lengths and lengths - caps: it is linear between these.
    places = jnp.concatenate([lengths, lengths - caps])
    turns = jnp.concatenate([jnp.ones_like(lengths), -jnp.ones_like(lengths)])
    falling, turns = jax.lax.sort((-places, turns), num_keys=1)
    places = -falling
    slopes = jnp.cumsum(turns)
    following = jnp.append(places[1:], 0)
    sums = jnp.cumsum(slopes * (places - following))  # at `following`
    at = jnp.argmax(sums >= epsilon)
    found = following[at] + (sums[at] - epsilon) * trees.safe_inverse(slopes[at])
    return jnp.where(sums[-1] > epsilon, jnp.maximum(found, 0), 0)
