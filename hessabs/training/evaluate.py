"""Accuracy on clean and on attacked images, and the top Hessian eigenvalue."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hessabs import curvature, paths
from hessabs.attacks import losses
from hessabs.training.mesh import keep_up, split_whole
from hessabs.training.losses import evaluation_logits, evaluation_loss, scale_images
from hessabs.training.state import TrainState
from hessabs.typing import Attack, Params

Accuracy = Callable[[TrainState], float]
"""``accuracy(state) -> percent of the examples classified rightly``."""


def make_accuracy(
    model: nn.Module,
    batches: Sequence[Any],
    attack: Attack | None = None,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> Accuracy:
    """Make a function that evaluates the network on fixed batches, in evaluation mode.

    Args:
      model: A flax module called as ``(x, train)``.
      batches: Batches of one shape, image, label and weight (0 marks padding); they are kept on the device.
      attack: An attack on the images first, or None.
      key: Random key of an attack of many steps with random starts, the same at every call. Such an attack
        drives its own steps and stops where an image has fallen; one without a key is compiled into the
        evaluation.
      mesh: Devices over which each batch is split, or None.

    Returns:
      ``accuracy(state) -> percent``.
    """
    driven = attack is not None and key is not None

    @jax.jit
    def count(params: Params, model_state: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        batch = scale_images(batch)
        if attack is not None and not driven:
            batch = attack(losses.cross_entropy(evaluation_logits(model, model_state)), params, batch)
        logits = evaluation_logits(model, model_state)(params, batch["image"])
        right = (jnp.argmax(logits, axis=-1) == batch["label"]) & losses.usable(logits)
        return jnp.sum(right * batch["weight"]), jnp.sum(batch["weight"])

    on_device = [jax.device_put(batch) if mesh is None else split_whole(batch, mesh) for batch in batches]

    def accuracy(state: TrainState) -> float:
        counts = []
        for number, batch in enumerate(on_device):
            if attack is not None and key is not None:
                loss_fn = losses.cross_entropy(evaluation_logits(model, state.model_state))
                batch = attack(loss_fn, state.params, scale_images(batch), jax.random.fold_in(key, number))
            counts.append(count(state.params, state.model_state, batch))
            keep_up(counts[-1], mesh)
        right, total = np.sum(jax.device_get(counts), axis=0)
        return 100.0 * float(right) / float(total)

    return accuracy


Measure = Callable[[TrainState, Params], curvature.PowerIterationResult]
"""``measure(state, v0) -> the top eigenvalue, its vector, its residual``."""


def make_measure(
    model: nn.Module, batch: Any, *, max_iters: int, rtol: float, mesh: Mesh | None = None
) -> Callable[..., curvature.PowerIterationResult]:
    """Make a function that measures the top Hessian eigenvalue on a fixed batch, in evaluation mode.

    The batch is the same at every call, so that a change of the eigenvalue is a change of the network and not
    of the sample (the published code draws another batch each time).

    Args:
      model: A flax module called as ``(x, train)``.
      batch: image, label, weight.
      max_iters: Most Hessian-vector products.
      rtol: Relative residual that is good enough.
      mesh: Devices over which the batch is split, or None.

    Returns:
      ``measure(state, v0, block=None) -> PowerIterationResult``, a ``Measure``; pass the last eigenvector as
      v0. A block of params, as ``hessabs.curvature.restrict`` takes it, is measured alone: the other leaves of
      the vector stay those of v0.
    """
    on_device = jax.jit(scale_images)(jax.device_put(batch) if mesh is None else split_whole(batch, mesh))

    def measure(state: TrainState, v0: Params, block: str | None = None) -> curvature.PowerIterationResult:
        loss_fn = evaluation_loss(model, state.model_state)
        iterate = functools.partial(curvature.power_iteration, max_iters=max_iters, rtol=rtol)
        if block is None:
            return iterate(curvature.hessian(loss_fn, state.params, on_device, linearize=True), v0)
        whole = curvature.hessian(loss_fn, state.params, on_device)
        start, others = paths.partition(v0, block)
        result = iterate(curvature.restrict(whole, state.params, block, linearize=True), start)
        return result._replace(eigenvector=paths.combine(result.eigenvector, others))

    return measure
