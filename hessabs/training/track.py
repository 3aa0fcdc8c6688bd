"""Curvature and gradient by epoch, for any method: what ``hessabs train --track`` records."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hessabs import curvature, paths, trees
from hessabs.data import Dataset, eval_batches
from hessabs.training.evaluate import Measure
from hessabs.training.losses import evaluation_loss, scale_images
from hessabs.training.state import TrainState
from hessabs.typing import Params

TRACKED = ("eigenvalue", "gradient_norm", "last_layer_eigenvalue")
"""What can be tracked."""

Track = Callable[[TrainState, Params], dict[str, float]]
"""``track(state, v0) -> numbers of this epoch by name``."""


def parse(names: str) -> tuple[str, ...]:
    """Read a comma-separated list of what to track.

    Args:
      names: The list; empty for nothing.

    Returns:
      The names.

    Raises:
      ValueError: If a name is unknown.

    Example:
      >>> parse("eigenvalue,gradient_norm")
      ('eigenvalue', 'gradient_norm')
    """
    parts = tuple(part.strip() for part in names.split(",") if part.strip())
    for part in parts:
        if part not in TRACKED:
            raise ValueError(f"`track` must name some of {', '.join(TRACKED)}, got {part!r}.")
    return parts


def make_track(
    names: tuple[str, ...], model: nn.Module, dataset: Dataset, hessian_batch: Any, measure: Measure
) -> Track:
    """Make a function that measures a network at the end of an epoch, in evaluation mode.

    Args:
      names: Of ``TRACKED``: ``eigenvalue`` is the dominant eigenvalue of the total Hessian and
        ``last_layer_eigenvalue`` that of the last layer's block, both on the batch that the batch-size rule
        looks at; ``gradient_norm`` is the norm of the gradient of the mean loss over the whole training set.
      model: A flax module called as ``(x, train)``.
      dataset: The images.
      hessian_batch: image, label, weight.
      measure: Measures the top eigenvalue on ``hessian_batch``.

    Returns:
      ``track(state, v0)``; v0 is a good start for the eigenvector.
    """
    num_examples = len(dataset.train["label"])

    @jax.jit
    def add_gradient(state: TrainState, batch: Any, total: Params) -> Params:
        loss_fn, weight = evaluation_loss(model, state.model_state), jnp.sum(batch["weight"])
        gradient = jax.grad(loss_fn)(state.params, scale_images(batch))
        return jax.tree.map(lambda t, g: t + weight * g, total, gradient)

    def track(state: TrainState, v0: Params) -> dict[str, float]:
        record: dict[str, float] = {}
        if "eigenvalue" in names:
            result = measure(state, v0)
            record |= {"eigenvalue": float(result.eigenvalue), "residual": float(result.residual)}
        if "gradient_norm" in names:
            total = jax.tree.map(jnp.zeros_like, state.params)
            for batch in eval_batches(dataset.train, min(1000, num_examples)):
                total = add_gradient(state, batch, total)
            record["gradient_norm"] = float(trees.normalize(total)[1]) / num_examples
        if "last_layer_eigenvalue" in names:
            head = last_layer(state.params, dataset.num_classes)
            loss_fn = evaluation_loss(model, state.model_state)
            operator = curvature.hessian(loss_fn, state.params, scale_images(hessian_batch))
            block = curvature.restrict(operator, state.params, head, linearize=True)
            start, _ = paths.partition(v0, head)
            record["last_layer_eigenvalue"] = float(curvature.eigsh(block, start, rtol=1e-2).eigenvalues[0])
        return {name: value if np.isfinite(value) else float("nan") for name, value in record.items()}

    return track


def last_layer(params: Params, num_classes: int) -> str:
    """Find the last layer of a network: the last matrix with an output for each class.

    Args:
      params: The params of a network.
      num_classes: Its number of classes.

    Returns:
      The path of the layer, as ``hessabs.curvature.restrict`` takes it.

    Raises:
      ValueError: If there is none.
    """
    leaves = dict(zip(paths.paths(params), jax.tree.leaves(params), strict=True))
    heads = [
        name
        for name, layer in curvature.layers(params).items()
        if any(leaves[path].ndim == 2 and leaves[path].shape[-1] == num_classes for path in layer.paths)
    ]
    if not heads:
        raise ValueError(f"The network has no last layer: no matrix with {num_classes} outputs.")
    return max(heads, key=lambda name: (len(name), name))
