"""The loss around the params: along a line, or on a plane."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, programs, trees
from hessabs.curvature.layers import output_axes, stack_axes
from hessabs.curvature.linearization import Source, Weight, make_source
from hessabs.curvature.losses import scalar
from hessabs.curvature.operators import MODES
from hessabs.curvature.passes import Batches, Passes, read
from hessabs.curvature.streaming import check_total_weight
from hessabs.paths import Where
from hessabs.typing import LossFn, Params


class Landscape(NamedTuple):
    """Losses on a grid."""

    coordinates: tuple[np.ndarray, ...]  # one array of shape (n_i,) a direction
    values: np.ndarray  # shape (n_1,) or (n_1, n_2), float64: NaN where not evaluated yet


def landscape(
    loss_fn: LossFn,
    params: Params,
    batches: Batches,
    directions: Sequence[Params],
    coordinates: Sequence[np.ndarray],
    *,
    weight: Weight = None,
    has_aux: bool = False,
    values: np.ndarray | None = None,
    max_points: int | None = None,
    on_point: Callable[[Landscape], Any] | None = None,
) -> Landscape:
    """Evaluate ``loss(params + t_1 d_1 + t_2 d_2)`` on a grid, as a mean over all batches.

    Points that ``values`` has are not evaluated again: a run that was interrupted goes on from the values it
    had, which ``on_point`` may keep. A NaN loss is kept as infinity, so that it is not taken for a missing one.

    Args:
      loss_fn, params, has_aux: As in ``hessian``.
      batches: An iterable that starts anew at each point, or a function that opens one; ``[batch]`` for one.
      directions: One or two pytrees like ``params``: eigenvectors, or ``filter_normalized_direction``.
      coordinates: The grid along each direction, in units of the direction's length.
      weight: As in ``dataset_hessian``.
      values: Losses that are known, NaN where not, in the shape of the grid.
      max_points: Evaluate at most so many points in this call.
      on_point: Called after each point with the ``Landscape`` so far, to save it or to show progress.

    Raises:
      ValueError: If a direction does not look like ``params``, the numbers of directions and coordinates are
        not both one or both two, ``values`` has another shape than the grid, there is no batch, or all weigh
        nothing.

    Example:
      >>> loss = lambda w, x: jnp.mean((x * w) ** 2)
      >>> landscape(loss, jnp.zeros(()), [jnp.ones(2)], [jnp.ones(())], [np.array([-1.0, 0.0, 2.0])]).values
      array([1., 0., 4.])
    """
    got = len(directions), len(coordinates)
    if got not in ((1, 1), (2, 2)):
        raise ValueError(
            f"`directions` and `coordinates` must both have one or two entries, got {got[0]} and {got[1]}."
        )
    trees.check_floating(params, "params")
    for direction in directions:
        trees.check_like(direction, params, "a direction", "params")
    grid = tuple(np.asarray(c, np.float64) for c in coordinates)
    shape = tuple(len(c) for c in grid)
    values = np.full(shape, np.nan) if values is None else np.array(values, np.float64)
    if values.shape != shape:
        raise ValueError(f"`values` must have the shape of the grid, {shape}, got {values.shape}.")
    source = make_source(MODES, (loss_fn,), params, None, has_aux=has_aux, weight=weight)
    data = Passes(batches)
    missing = np.argwhere(np.isnan(values))[:max_points]
    for index in map(tuple, missing):
        steps = [float(c[i]) for c, i in zip(grid, index, strict=True)]
        moved = ((source._replace(batch=batch), tuple(directions), steps) for batch in read(data, source))
        losses, weights = np.array([_floats(_jitted_loss(*one)) for one in moved]).T
        total = check_total_weight(float(weights.sum()))
        mean = float(losses[weights > 0] @ weights[weights > 0]) / total
        values[index] = np.inf if np.isnan(mean) else mean
        if on_point is not None:
            on_point(Landscape(grid, values))
    return Landscape(grid, values)


def filter_normalized_direction(
    key: jax.Array, params: Params, *, output_axis: int | None = None, stacked: Where | None = None
) -> Params:
    """Draw a random direction like the params, in which every filter has the norm that it has there.

    A filter is all entries that share the index of one output; biases and normalisation get zeros.

    Args:
      key: A random key.
      params: A pytree of floating-point arrays.
      output_axis: The axis of the outputs in all kernels: -1 in flax and haiku, 0 in Equinox and PyTorch. None
        for 0 in the layers of ``equinox.nn`` and -1 elsewhere.
      stacked: The leaves that hold a stack of layers, as in ``layers``: each layer has its own filters.

    Returns:
      A pytree like ``params``.

    Raises:
      ValueError: If ``stacked`` finds no leaf.

    Example:
      >>> direction = filter_normalized_direction(jax.random.key(0), {"w": 3 * jnp.eye(2), "b": jnp.ones(2)})
      >>> np.linalg.norm(direction["w"], axis=0).round(3), direction["b"]
      (array([3., 3.], dtype=float32), Array([0., 0.], dtype=float32))

    References:
      Li et al. (2018), arXiv:1712.09913.
    """

    def scale(noise: jax.Array, param: jax.Array, output: int | None, stack: int | None) -> jax.Array:
        if output is None:
            return jnp.zeros_like(param)
        axes = tuple(axis for axis in range(param.ndim) if axis not in (output, stack))
        norms = [jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (param, noise)]
        return (noise * norms[0] * trees.safe_inverse(norms[1])).astype(param.dtype)

    leaves, treedef = jax.tree.flatten(params)
    noise = jax.tree.leaves(trees.normal_like(key, params))
    outputs, stacks = output_axes(params, output_axis, stacked=stacked), stack_axes(params, stacked)
    drawn = [scale(*x) for x in zip(noise, leaves, outputs, stacks, strict=True)]
    return jax.tree.unflatten(treedef, drawn)


def _floats(numbers: tuple[jax.Array, ...]) -> tuple[float, ...]:
    if trees.is_traced(numbers):
        raise ValueError("landscape reads its losses in Python: it cannot be traced (jit, vmap, grad).")
    return tuple(map(float, numbers))


@programs.jit
def _jitted_loss(
    source: Source, directions: tuple[Params, ...], steps: list[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    params = source.params
    for direction, step in zip(directions, steps, strict=True):
        params = jax.tree.map(lambda p, d, step=step: p + (step * d).astype(p.dtype), params, direction)
    loss = scalar(source.functions[0], params, source.batch)
    return loss, batch_axis.total_weight(source.weight, source.batch)
