"""The jitted functions of a training step, each compiled once whatever the batch size does.

A batch of B examples is k = B / micro_batch_size calls of ``accumulate`` and one of ``apply_update``; where k
is 1, it is one call of ``update``, which touches no accumulator. k is a number on the host, the learning rate
and the adversarial fraction are traced: growth compiles nothing. The calls come from a Python loop and not from
``lax.scan``, for convolution gradients inside a loop are 20 to 50 times slower on the CPU (see
``hessabs.curvature.loops``).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import replace_fraction
from hessabs.batch_size import GradientStatistics
from hessabs.training.state import TrainState
from hessabs.typing import Attack, LossFn, Params


class StepFunctions(NamedTuple):
    """The jitted functions of one run. Each donates its state: keep only the one it returns."""

    accumulate: Callable[[TrainState, Any], TrainState]
    accumulate_adversarial: Callable[[TrainState, Any, Any], TrainState]
    apply_update: Callable[[TrainState, Any], TrainState]
    update: Callable[[TrainState, Any, Any], TrainState]
    update_adversarial: Callable[[TrainState, Any, Any, Any], TrainState]

    def compilations(self) -> dict[str, int]:
        """Count how often each function has been compiled in this run: once, or not at all."""
        return {name: function._cache_size() for name, function in self._asdict().items()}


def make_step_functions(
    model: nn.Module,
    optimizer: optax.GradientTransformationExtraArgs,
    attack: Attack,
    max_fraction: float,
    *,
    gradient_statistics: bool = False,
    micro_batch_size: int | None = None,
) -> StepFunctions:
    """Compile-ready functions for a network, an optimiser and an attack.

    Args:
      model: A flax module called as ``(x, train)``.
      optimizer: The optax chain; its update gets ``lr_scale`` as an extra argument.
      attack: The attack on the head of each micro-batch.
      max_fraction: The largest adversarial fraction of the run.
      gradient_statistics: Whether ``state.statistics`` is to compare the micro-batches of each update, for the
        rules that read it. It takes a norm per micro-batch and no further pass; a partial last micro-batch
        counts as a whole one there.
      micro_batch_size: Examples of a micro-batch, for batches of several of them one behind the other: the
        adversarial fraction is then that of each.

    Returns:
      ``StepFunctions``: ``accumulate(state, batch)`` adds the gradient of a micro-batch;
      ``accumulate_adversarial(state, batch, fraction)`` replaces a fraction of it first, with the network in
      evaluation mode; ``apply_update(state, lr_scale)`` makes the update of what was accumulated;
      ``update(state, batch, lr_scale)`` and ``update_adversarial(state, batch, fraction, lr_scale)`` make that
      of a single micro-batch. Batches are as ``hessabs.data`` yields them: image uint8 or float32 (n, height,
      width, channels), label int32 (n,), weight float32 (n,).
    """

    def differentiate(state: TrainState, batch: Any) -> tuple[TrainState, Params, jax.Array]:
        gradient_fn = jax.value_and_grad(training_loss, argnums=2, has_aux=True)
        (loss, model_state), gradient = gradient_fn(model, state.model_state, state.params, batch)
        weight = jnp.sum(batch["weight"])
        bad = ~jnp.isfinite(loss) & (state.nonfinite_update == 0)
        state = state._replace(
            model_state=model_state,
            loss=state.loss + weight * loss,
            loss_weight=state.loss_weight + weight,
            nonfinite_update=jnp.where(bad, state.updates + 1, state.nonfinite_update),
        )
        return state, gradient, weight

    def add_gradient(state: TrainState, batch: Any) -> TrainState:
        state, gradient, weight = differentiate(state, batch)
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

    def mix(state: TrainState, batch: Any, fraction: Any) -> Any:
        loss_fn = evaluation_loss(model, state.model_state)
        return replace_fraction(
            attack,
            loss_fn,
            state.params,
            scale_images(batch),
            fraction,
            max_fraction=max_fraction,
            part_size=micro_batch_size,
        )

    def accumulate(state: TrainState, batch: Any) -> TrainState:
        return add_gradient(state, scale_images(batch))

    def accumulate_adversarial(state: TrainState, batch: Any, fraction: Any) -> TrainState:
        return add_gradient(state, mix(state, batch, fraction))

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
        state, gradient, _ = differentiate(state, scale_images(batch))
        return descend(state, gradient, lr_scale)

    def update_adversarial(state: TrainState, batch: Any, fraction: Any, lr_scale: Any) -> TrainState:
        state, gradient, _ = differentiate(state, mix(state, batch, fraction))
        return descend(state, gradient, lr_scale)

    return StepFunctions(
        *(
            jax.jit(function, donate_argnums=0)
            for function in (accumulate, accumulate_adversarial, apply_update, update, update_adversarial)
        )
    )


def scale_images(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Turn images of uint8 into float32 in [0, 1], on the device; float images stay.

    Args:
      batch: A batch with the key "image".

    Returns:
      The batch with a float image.
    """
    image = batch["image"]
    if image.dtype == jnp.uint8:
        image = image.astype(jnp.float32) / 255
    return {**batch, "image": image}


def training_loss(model: nn.Module, model_state: Any, params: Params, batch: Any) -> tuple[jax.Array, Any]:
    """Weighted mean cross-entropy in training mode: batch norm uses and updates its statistics.

    Args:
      model: A flax module called as ``(x, train)``.
      model_state: Its collections beside the params.
      params: Its params.
      batch: image float32, label int32, weight float32, with one leading axis.

    Returns:
      (the loss in nats, the new model state).
    """
    logits, new_state = model.apply(
        {"params": params, **model_state}, batch["image"], train=True, mutable=list(model_state)
    )
    return cross_entropy(logits, batch), new_state


def evaluation_loss(model: nn.Module, model_state: Any) -> LossFn:
    """Make the loss of the network in evaluation mode, for curvature and attacks.

    Args:
      model: A flax module called as ``(x, train)``.
      model_state: Its collections beside the params.

    Returns:
      ``loss_fn(params, batch) -> scalar`` in nats, a pytree: new values of the model state compile nothing.
    """
    return Partial(_evaluation_loss, trees.Static(model), model_state)


def _evaluation_loss(model: trees.Static, model_state: Any, params: Params, batch: Any) -> jax.Array:
    logits = model.value.apply({"params": params, **model_state}, batch["image"], train=False)
    return cross_entropy(logits, batch)


def cross_entropy(logits: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """Mean cross-entropy over the examples of a batch, by weight.

    Args:
      logits: Shape (n, classes).
      batch: label int32 (n,), weight float32 (n,).

    Returns:
      The loss in nats, a float32 scalar; 0 when all weights are 0.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["label"])
    return jnp.sum(losses * batch["weight"]) * trees.safe_inverse(jnp.sum(batch["weight"]))
