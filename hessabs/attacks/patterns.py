"""The perturbations that the square attack tries on one image: stripes and squares, bumps and their weight.

An image is (height, width, channels). The side of a square is traced, so squares are masks and not slices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees

Shape = tuple[int, int, int]
_SUMS = np.concatenate([[0], np.cumsum(1 / np.arange(1.0, 1024.0) ** 2)]).astype(np.float32)


def as_image(shape: tuple[int, ...]) -> Shape:
    """Return the shape of an input as (height, width, channels).

    Args:
      shape: (height, width, channels), (height, width) or (width,).

    Returns:
      Three numbers.

    Raises:
      ValueError: For any other rank.

    Example:
      >>> as_image((28, 28))
      (28, 28, 1)
    """
    if not 1 <= len(shape) <= 3:
        raise ValueError(
            "The square attack takes inputs of shape (height, width, channels), (height, width) or (width,), "
            f"got {shape}."
        )
    height, width, channels = (1, *shape, 1) if len(shape) == 1 else (*shape, 1)[:3]
    return height, width, channels


def stripes(key: jax.Array, shape: Shape, epsilon: jax.Array) -> jax.Array:
    """Draw vertical stripes of plus or minus epsilon.

    Args:
      key: Random key.
      shape: Of the image.
      epsilon: Height of the stripes, a scalar.

    Returns:
      A perturbation of that shape.
    """
    signs = jax.random.rademacher(key, (1, shape[1], shape[2]), jnp.float32)
    return jnp.broadcast_to(epsilon * signs, shape)


def flip(key: jax.Array, delta: jax.Array, side: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Put a random square of each channel to plus or minus epsilon.

    Args:
      key: Random key.
      delta: The perturbation so far.
      side: Of the square in pixels, a scalar.
      epsilon: A scalar.

    Returns:
      A perturbation like ``delta``.
    """
    place_key, sign_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (delta.shape[2],), delta.dtype)
    inside = _inside(_corner(place_key, delta.shape, side), delta.shape, side)
    return jnp.where(inside, epsilon * signs, delta)


def tiles(key: jax.Array, shape: Shape, epsilon: jax.Array) -> jax.Array:
    """Tile the image with bumps of random sign, a fifth of the smaller side wide, of L2 norm epsilon in all.

    Args:
      key: Random key.
      shape: Of the image.
      epsilon: A scalar.

    Returns:
      A perturbation of that shape.
    """
    height, width, channels = shape
    side = max(1, min(height, width) // 5)
    turn_key, sign_key = jax.random.split(key)
    row, column = jnp.arange(height), jnp.arange(width)
    bump = _bump(row[:, None] % side, column % side, jnp.int32(side), jax.random.bernoulli(turn_key))
    signs = jax.random.rademacher(sign_key, (-(-height // side), -(-width // side), channels), jnp.float32)
    return epsilon * trees.normalize(bump[..., None] * signs[row // side][:, column // side])[0]


def move_mass(key: jax.Array, delta: jax.Array, side: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Take the perturbation out of one random square, and turn another one, with that weight, towards a bump.

    Args:
      key: Random key.
      delta: The perturbation so far, of L2 norm epsilon at most.
      side: Of the squares in pixels, a scalar.
      epsilon: A scalar.

    Returns:
      A perturbation like ``delta``, of L2 norm epsilon.
    """
    to_key, from_key, sign_key, turn_key = jax.random.split(key, 4)
    shape, axes = delta.shape, (0, 1)
    corner = _corner(to_key, shape, side)
    target = _inside(corner, shape, side)
    source = _inside(_corner(from_key, shape, side), shape, side)
    spare = jnp.maximum(epsilon**2 - jnp.sum(delta**2), 0) / shape[2]
    weight = jnp.sqrt(jnp.sum(jnp.where(target | source, delta, 0) ** 2, axis=axes) + spare)  # by channel

    row, column = jnp.arange(shape[0])[:, None] - corner[0], jnp.arange(shape[1]) - corner[1]
    bump = jnp.where(target, _bump(row, column, side, jax.random.bernoulli(turn_key))[..., None], 0)
    signs = jax.random.rademacher(sign_key, (shape[2],), delta.dtype)
    present = jnp.where(target, delta, 0)
    new = signs * _unit(bump, axes)
    turned = new + _unit(present, axes)
    turned = jnp.where(jnp.any(turned != 0, axis=axes, keepdims=True), turned, new)  # they may cancel
    changed = jnp.where(target, weight * _unit(turned, axes), jnp.where(source, 0, delta))
    return changed.astype(delta.dtype)


def _corner(key: jax.Array, shape: tuple[int, ...], side: jax.Array) -> jax.Array:
    # The upper left pixel of a square that lies in the image.
    most = jnp.array(shape[:2]) - side
    return jnp.minimum((jax.random.uniform(key, (2,)) * (most + 1)).astype(jnp.int32), most)


def _inside(corner: jax.Array, shape: tuple[int, ...], side: jax.Array) -> jax.Array:
    row, column = jnp.arange(shape[0])[:, None] - corner[0], jnp.arange(shape[1]) - corner[1]
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[..., None]


def _bump(row: jax.Array, column: jax.Array, side: jax.Array, turned: jax.Array) -> jax.Array:
    # Two blunt pyramids of opposite sign, one above the other; `turned`: side by side.
    row, column = jnp.where(turned, column, row), jnp.where(turned, row, column)
    half = side // 2
    upper = _pyramid(row, column, half, side)
    lower = _pyramid(row - half, column, side - half, side)
    return jnp.where(row < half, upper, -lower)


def _pyramid(row: jax.Array, column: jax.Array, height: jax.Array, width: jax.Array) -> jax.Array:
    # Over a rectangle: the sum of 1 / k^2 for k from the distance to the middle, plus 1, to the largest one.
    distance = jnp.maximum(jnp.abs(row - height // 2), jnp.abs(column - width // 2))
    most = jnp.maximum(height, width) // 2 + 1
    sums = jnp.asarray(_SUMS)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return jnp.where(inside, jnp.maximum(sums[most] - sums[distance], 0), 0)


def _unit(x: jax.Array, axes: tuple[int, int]) -> jax.Array:
    length = jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
    return x * trees.safe_inverse(length)
