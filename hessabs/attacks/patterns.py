"""The perturbations that the square attack tries on one image: stripes and squares, bumps and their weight.

An image is (height, width, channels); one of a single row or column has blocks of a length for squares. The
side of a square is traced, so squares are masks and not slices.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import trees
from hessabs.attacks.norms import Norm

Layout = Literal["channels_last", "channels_first", "vector"]
Shape = tuple[int, ...]
_SUMS = np.concatenate([[0], np.cumsum(1 / np.arange(1.0, 1024.0) ** 2)]).astype(np.float32)


def is_vector(shape: Shape, layout: Layout) -> bool:
    """Tell whether the entries of an input have no neighbours."""
    return layout == "vector" or len(shape) == 1


def as_image(x: jax.Array, layout: Layout) -> jax.Array:
    """Return an input as (height, width, channels)."""
    if is_vector(x.shape, layout):
        return x.reshape(1, -1, 1)
    if x.ndim not in (2, 3):
        raise ValueError(
            "The square attack takes inputs of shape (height, width, channels), (height, width) or (width,), "
            f'got {x.shape}; layout="vector" takes any shape.'
        )
    if x.ndim == 2:
        return x[..., None]
    return jnp.moveaxis(x, 0, -1) if layout == "channels_first" else x


def as_input(image: jax.Array, shape: Shape, layout: Layout) -> jax.Array:
    """Undo ``as_image``."""
    first = layout == "channels_first" and len(shape) == 3
    return (jnp.moveaxis(image, -1, 0) if first else image).reshape(shape)


def stripes(key: jax.Array, shape: Shape, epsilon: jax.Array) -> jax.Array:
    """Draw vertical stripes of plus or minus epsilon."""
    signs = jax.random.rademacher(key, (1, shape[1], shape[2]), jnp.float32)
    return jnp.broadcast_to(epsilon * signs, shape)


def flip(key: jax.Array, delta: jax.Array, side: jax.Array, epsilon: jax.Array) -> jax.Array:
    """Put a random square of each channel to plus or minus epsilon."""
    place_key, sign_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (delta.shape[2],), delta.dtype)
    inside, _, _ = _random_square(place_key, delta.shape, side)
    return jnp.where(inside, epsilon * signs, delta)


def tiles(key: jax.Array, shape: Shape, epsilon: jax.Array, norm: Norm) -> jax.Array:
    """Tile the image with bumps of random sign, a fifth of the smaller side wide, of norm epsilon in all."""
    height, width, channels = shape
    side = max(1, min(height, width) // 5)
    turn_key, sign_key = jax.random.split(key)
    row, column = jnp.arange(height), jnp.arange(width)
    bump = _bump(row[:, None] % side, column % side, jnp.int32(side), jax.random.bernoulli(turn_key))
    signs = jax.random.rademacher(sign_key, (-(-height // side), -(-width // side), channels), jnp.float32)
    return epsilon * _unit(bump[..., None] * signs[row // side][:, column // side], (0, 1, 2), norm)


def move_mass(key: jax.Array, delta: jax.Array, side: jax.Array, epsilon: jax.Array, norm: Norm) -> jax.Array:
    """Take the perturbation out of a random square, and turn another one, with that weight, towards a bump."""
    to_key, from_key, sign_key, turn_key = jax.random.split(key, 4)
    shape, axes = delta.shape, (0, 1)
    target, row, column = _random_square(to_key, shape, side)
    source, _, _ = _random_square(from_key, shape, side)
    power = 2 if norm == "l2" else 1  # what adds up: squares, or absolute values
    spare = jnp.maximum(epsilon**power - jnp.sum(jnp.abs(delta) ** power), 0) / shape[2]
    moving = jnp.where(target | source, delta, 0)
    weight = (jnp.sum(jnp.abs(moving) ** power, axis=axes) + spare) ** (1 / power)  # by channel

    bump = jnp.where(target, _bump(row, column, side, jax.random.bernoulli(turn_key))[..., None], 0)
    signs = jax.random.rademacher(sign_key, (shape[2],), delta.dtype)
    present = jnp.where(target, delta, 0)
    new = signs * _unit(bump, axes, norm)
    turned = new + _unit(present, axes, norm)
    turned = jnp.where(jnp.any(turned != 0, axis=axes, keepdims=True), turned, new)  # they may cancel
    changed = jnp.where(target, weight * _unit(turned, axes, norm), jnp.where(source, 0, delta))
    return changed.astype(delta.dtype)


def _random_square(key: jax.Array, shape: Shape, side: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    # A square that lies in the image: which pixels are inside, and rows and columns counted from its corner.
    most = jnp.maximum(jnp.array(shape[:2]) - side, 0)
    corner = jnp.minimum((jax.random.uniform(key, (2,)) * (most + 1)).astype(jnp.int32), most)
    row, column = jnp.arange(shape[0])[:, None] - corner[0], jnp.arange(shape[1]) - corner[1]
    return ((row >= 0) & (row < side) & (column >= 0) & (column < side))[..., None], row, column


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


def _unit(x: jax.Array, axes: tuple[int, ...], norm: Norm) -> jax.Array:
    total = jnp.sum(x**2 if norm == "l2" else jnp.abs(x), axis=axes, keepdims=True)
    return x * trees.safe_inverse(jnp.sqrt(total) if norm == "l2" else total)
