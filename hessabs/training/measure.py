"""What is measured of a network while it is trained: its top Hessian eigenvalue, and what ``--track`` names.

The batch of an eigenvalue is the same at every call, so that a change of the eigenvalue is a change of the
network and not of the sample (the published code draws another batch each time).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from hessabs import curvature, paths, programs, trees
from hessabs.data import eval_batches
from hessabs.training.mesh import split_whole
from hessabs.training.task import Task, evaluation_loss, evaluation_weight
from hessabs.typing import LossFn, Params

Measure = Callable[..., curvature.PowerIterationResult]
"""``measure(params, model_state, v0, block=None) -> the top eigenvalue, its vector, its residual``."""

Track = Callable[[Params, Any, Params], dict[str, float]]
"""``track(params, model_state, v0) -> numbers of this epoch by name``."""


def make_measure(task: Task, batch: Any, *, max_iters: int, rtol: float, mesh: Mesh | None = None) -> Measure:
    """Make a function that measures the top Hessian eigenvalue on a fixed batch as it is read.

    Pass the last eigenvector as ``v0``. Of a ``block`` (as ``curvature.restrict`` takes it) the other leaves of
    the vector stay those of ``v0``.
    """
    on_device = jax.jit(task.prepare)(jax.device_put(batch) if mesh is None else split_whole(batch, mesh))

    def measure(
        params: Params, model_state: Any, v0: Params, block: str | None = None
    ) -> curvature.PowerIterationResult:
        weight = evaluation_weight(task, params, model_state)
        operator = curvature.hessian(
            evaluation_loss(task, model_state), params, on_device, linearize=True, weight=weight
        )
        if block is None:
            return curvature.power_iteration(operator, v0, max_iters=max_iters, rtol=rtol)
        start, others = paths.partition(v0, block)
        part = curvature.restrict(operator, params, block)
        result = curvature.power_iteration(part, start, max_iters=max_iters, rtol=rtol)
        return result._replace(eigenvector=paths.combine(result.eigenvector, others))

    return measure


def make_track(
    names: tuple[str, ...], task: Task, batch: Any, measure: Measure, *, mesh: Mesh | None = None
) -> Track:
    """Make a function that measures a network at the end of an epoch, in evaluation mode.

    Of ``settings.TRACKED``, ``eigenvalue`` is what ``measure`` says, ``last_layer_eigenvalue`` that of the
    last layer's block, found by ``eigsh`` on the same batch, and ``gradient_norm`` the norm of the gradient of
    the mean loss over the whole training set. ``v0`` is a good start for the eigenvector.
    """

    def track(params: Params, model_state: Any, v0: Params) -> dict[str, float]:
        record: dict[str, float] = {}
        if "eigenvalue" in names:
            result = measure(params, model_state, v0)
            record |= {"eigenvalue": float(result.eigenvalue), "residual": float(result.residual)}
        if "gradient_norm" in names:
            record["gradient_norm"] = gradient_norm(task, params, model_state, mesh=mesh)
        if "last_layer_eigenvalue" in names:
            head = curvature.last_layer_path(params, task.num_classes)
            operator = curvature.hessian(raw_loss(task, model_state), params, batch)
            block = curvature.restrict(operator, params, head, linearize=True)
            start, _ = paths.partition(v0, head)
            record["last_layer_eigenvalue"] = float(curvature.eigsh(block, start, rtol=1e-2).eigenvalues[0])
        return {name: value if np.isfinite(value) else float("nan") for name, value in record.items()}

    return track


def gradient_norm(
    task: Task, params: Params, model_state: Any, *, mesh: Mesh | None = None, batch_size: int = 1000
) -> float:
    """Return the norm of the gradient of the mean loss over the whole training set."""
    loss_fn, weigh = raw_loss(task, model_state), raw_weight(task, params, model_state)
    total, weights = jax.tree.map(jnp.zeros_like, params), 0.0
    for batch in eval_batches(task.train, min(batch_size, len(task.train))):
        total, weight = _add_gradient(loss_fn, weigh, params, split_whole(batch, mesh), total)
        weights += float(weight)
    return float(trees.normalize(total)[1]) / weights


def raw_loss(task: Task, model_state: Any) -> LossFn:
    """Return ``evaluation_loss`` for batches that are not prepared yet."""
    return Partial(_of_raw, Partial(task.prepare), evaluation_loss(task, model_state))


def raw_weight(task: Task, params: Params, model_state: Any) -> Callable[[Any], Any]:
    """Return ``evaluation_weight`` for batches that are not prepared yet."""
    return Partial(_of_raw, Partial(task.prepare), evaluation_weight(task, params, model_state))


def _of_raw(prepare: Callable[[Any], Any], function: Callable[..., Any], *args: Any) -> Any:
    *params, batch = args
    return function(*params, prepare(batch))


@programs.jit
def _add_gradient(
    loss_fn: LossFn, weigh: Partial, params: Params, batch: Any, total: Params
) -> tuple[Params, jax.Array]:
    weight, gradient = weigh(batch), jax.grad(loss_fn)(params, batch)
    return jax.tree.map(lambda t, g: t + jnp.where(weight > 0, weight * g, 0), total, gradient), weight
