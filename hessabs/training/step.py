"""The jitted functions of a training step, each compiled once whatever the batch size does.

A batch of B examples is k = B / micro_batch_size calls of ``accumulate`` and one of ``apply_update``; where k
is 1, it is one call of ``update``, which touches no accumulator. k is a number on the host, the learning rate
and the adversarial fraction are traced: growth compiles nothing. The calls come from a Python loop and not from
``lax.scan``, for convolution gradients inside a loop are 20 to 50 times slower on the CPU (see
``hessabs.loops``).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from hessabs import trees
from hessabs.batch_size import GradientStatistics
from hessabs.cpu import convolutions
from hessabs.training.losses import scale_images
from hessabs.training.robust import Objective
from hessabs.training.state import TrainState
from hessabs.typing import Params

_PLAIN = Objective()
_KEYS = 2  # folded into the seed; the params take the seed itself, the first eigenvector 1


class StepFunctions(NamedTuple):
    """The functions of one run; all but ``perturb`` are jitted and donate their state: keep the new one."""

    accumulate: Callable[[TrainState, Any], TrainState]
    accumulate_adversarial: Callable[[TrainState, Any, Any], TrainState]
    apply_update: Callable[[TrainState, Any], TrainState]
    update: Callable[[TrainState, Any, Any], TrainState]
    update_adversarial: Callable[[TrainState, Any, Any, Any], TrainState]
    perturb: Callable[[TrainState, Any, Any], Any]

    def compilations(self) -> dict[str, int]:
        """Count how often each jitted function has been compiled in this run: once, or not at all."""
        functions = self._asdict()
        del functions["perturb"]
        return {name: function._cache_size() for name, function in functions.items()}


def jit_each(functions: StepFunctions) -> StepFunctions:
    """Compile the functions of a step for one device.

    Args:
      functions: As plain Python.

    Returns:
      The same, jitted.
    """
    jit = functools.partial(jax.jit, donate_argnums=0)
    jitted = {
        name: jit(convolutions.in_parts(function))
        for name, function in functions._asdict().items()
        if name != "perturb"
    }
    return functions._replace(**jitted)


def make_step_functions(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    objective: Objective = _PLAIN,
    *,
    seed: int = 0,
    gradient_statistics: bool = False,
    compiled: Callable[[StepFunctions], StepFunctions] = jit_each,
) -> StepFunctions:
    """Compile-ready functions for a network, an optimiser and a robust objective.

    Args:
      model: A flax module called as ``(x, train)``.
      optimizer: The optax chain; its update gets ``lr_scale`` as an extra argument.
      objective: What the functions named ``_adversarial`` differentiate; the others train plainly.
      seed: Seed of the objective's random keys, one for each micro-batch.
      gradient_statistics: Whether ``state.statistics`` is to compare the micro-batches of each update, for the
        rules that read it. It takes a norm per micro-batch and no further pass; a partial last micro-batch
        counts as a whole one there.
      compiled: Makes the jitted functions of the plain ones: ``jit_each``, or for several devices
        ``hessabs.training.devices.parallel.on_mesh``.

    Returns:
      ``StepFunctions``: ``accumulate(state, batch)`` adds the gradient of a micro-batch;
      ``accumulate_adversarial(state, batch, fraction)`` adds that of the objective, for a fraction of it;
      ``apply_update(state, lr_scale)`` makes the update of what was accumulated;
      ``update(state, batch, lr_scale)`` and ``update_adversarial(state, batch, fraction, lr_scale)`` make that
      of a single micro-batch. A batch for a function named ``_adversarial`` goes through
      ``perturb(state, batch, fraction) -> batch`` first: it runs attacks whose loop Python drives, and returns
      the batch as it is where there is none. Batches are as ``hessabs.data`` yields them: image uint8 or
      float32 (n, height, width, channels), label int32 (n,), weight float32 (n,).
    """
    root = jax.random.fold_in(jax.random.key(seed), _KEYS)
    scale_on_device = jax.jit(scale_images)

    def attack(state: TrainState, batch: Any, fraction: Any) -> Any:
        assert objective.perturb is not None
        key = jax.random.fold_in(jax.random.fold_in(root, state.updates), state.parts)
        return objective.perturb(model, state.params, state.model_state, batch, fraction, key)

    def perturb(state: TrainState, batch: Any, fraction: Any) -> Any:
        if objective.perturb is None or not objective.driven_by_python:
            return batch
        return attack(state, scale_on_device(batch), fraction)

    def prepare(state: TrainState, batch: Any, fraction: Any) -> Any:
        batch = scale_images(batch)
        if objective.perturb is None or objective.driven_by_python:
            return batch
        return attack(state, batch, fraction)

    def differentiate(
        state: TrainState, batch: Any, objective: Objective
    ) -> tuple[TrainState, Params, jax.Array]:
        here = objective.gradient(model, state.params, state.model_state, batch, state.memory)
        weight = jnp.sum(batch["weight"])
        bad = ~jnp.isfinite(here.loss) & (state.nonfinite_update == 0)
        state = state._replace(
            model_state=here.model_state,
            memory=here.memory,
            loss=state.loss + weight * here.loss,
            loss_weight=state.loss_weight + weight,
            nonfinite_update=jnp.where(bad, state.updates + 1, state.nonfinite_update),
        )
        return state, here.gradient, weight

    def add_gradient(state: TrainState, batch: Any, objective: Objective) -> TrainState:
        state, gradient, weight = differentiate(state, batch, objective)
        return state._replace(
            gradient=jax.tree.map(lambda total, g: total + weight * g, state.gradient, gradient),
            weight=state.weight + weight,
            square=state.square + trees.vdot(gradient, gradient) if gradient_statistics else state.square,
            parts=state.parts + 1,
        )

    def descend(state: TrainState, gradient: Params, lr_scale: Any) -> TrainState:
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, lr_scale=lr_scale)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, updates=state.updates + 1)

    def accumulate(state: TrainState, batch: Any) -> TrainState:
        return add_gradient(state, scale_images(batch), _PLAIN)

    def accumulate_adversarial(state: TrainState, batch: Any, fraction: Any) -> TrainState:
        return add_gradient(state, prepare(state, batch, fraction), objective)

    def apply_update(state: TrainState, lr_scale: Any) -> TrainState:
        scale = trees.safe_inverse(state.weight)
        gradient = jax.tree.map(lambda g, p: (scale * g).astype(p.dtype), state.gradient, state.params)
        statistics = state.statistics
        if gradient_statistics:
            parts = state.parts.astype(jnp.float32)
            statistics = GradientStatistics(
                part_size=jnp.round(state.weight / parts).astype(jnp.int32),
                num_parts=state.parts,
                mean_square=state.square / parts,
                square_mean=trees.vdot(gradient, gradient).astype(jnp.float32),
            )
        return descend(state, gradient, lr_scale)._replace(
            gradient=optax.tree.zeros_like(state.gradient),
            weight=jnp.zeros_like(state.weight),
            square=jnp.zeros_like(state.square),
            parts=jnp.zeros_like(state.parts),
            statistics=statistics,
        )

    def update(state: TrainState, batch: Any, lr_scale: Any) -> TrainState:
        state, gradient, _ = differentiate(state, scale_images(batch), _PLAIN)
        return descend(state, gradient, lr_scale)

    def update_adversarial(state: TrainState, batch: Any, fraction: Any, lr_scale: Any) -> TrainState:
        state, gradient, _ = differentiate(state, prepare(state, batch, fraction), objective)
        return descend(state, gradient, lr_scale)

    return compiled(
        StepFunctions(
            accumulate, accumulate_adversarial, apply_update, update, update_adversarial, perturb=perturb
        )
    )
