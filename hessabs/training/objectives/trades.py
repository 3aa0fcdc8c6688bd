"""TRADES: the clean loss, plus how far predictions nearby can be from those of the clean images."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import losses
from hessabs.training.objectives.inner import InnerAttack
from hessabs.training.objectives.objective import Contribution, Objective, Share
from hessabs.training.task import Task, attack_loss
from hessabs.typing import Params

ADVERSARIAL = "adversarial"  # the key of the attacked images, beside the clean ones


def trades(inner: InnerAttack, beta: float) -> Objective:
    """Make the objective of TRADES, ``J(f(x), y) + beta max_x' KL(f(x) || f(x'))``.

    Args:
      inner: The inner maximisation, of the divergence and with the network in evaluation mode. It must start
        at random: at x itself the divergence and its gradient are 0.
      beta: Weight of the divergence, at least 0 (1 / lambda of the paper).

    Returns:
      An ``Objective``, of a task whose loss returns its logits, ``LossOutput(..., outputs=logits)``. Clean and
      attacked images make one training pass each, in this order: batch norm sees them apart and counts both in
      its statistics.

    Raises:
      ValueError: When training begins, if the loss does not return its logits.

    References:
      Zhang et al. (2019), arXiv:1901.08573, equation 5 and Algorithm 1. Differs from the published code: the
      attack starts uniformly in the ball, not at a Gaussian of size 0.001, and the best point is taken; clean
      images make one pass, whose statistics of batch norm count once, where the code makes a second one.
    """

    def perturb(
        task: Task, params: Params, model_state: Any, batch: Any, fraction: Any, key: jax.Array, share: Share
    ) -> Any:
        del fraction, share
        logits_fn, _ = losses.parts(attack_loss(task, model_state))
        name = task.inputs_key
        asked = {name: batch[name], "probabilities": _probabilities(logits_fn, params, batch[name])}
        found = inner.on(task)(losses.kl(logits_fn, inputs_key=name), params, asked, key)
        return {**batch, ADVERSARIAL: found[name]}

    def gradient(
        task: Task, params: Params, model_state: Any, batch: Any, key: jax.Array, memory: Any
    ) -> Contribution:
        def loss_fn(params: Params) -> tuple[jax.Array, Any]:
            clean = task.loss(params, model_state, batch, key, True)
            near = {**batch, task.inputs_key: batch[ADVERSARIAL]}
            attacked = task.loss(params, clean.model_state, near, jax.random.fold_in(key, 1), True)
            log_p, log_q = (jax.nn.log_softmax(z.outputs.astype(jnp.float32)) for z in (clean, attacked))
            seen = log_p > -jnp.inf  # others are masked out, and add nothing
            ratio = jnp.where(seen, log_p - jnp.where(seen, log_q, 0), 0)
            divergence = jnp.sum(jnp.exp(log_p) * ratio, axis=-1)
            weighted = jnp.sum(divergence * batch["weight"]) * trees.safe_inverse(clean.weight)
            return clean.mean + beta * weighted, (clean.weight, attacked.model_state)

        (loss, (weight, new_state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return Contribution(loss, weight, gradient, new_state, memory)

    return Objective(gradient, perturb, inner.iterated, _checked, fraction=1.0)


def _checked(task: Task, batch: Any) -> tuple[()]:
    # There is nothing to carry from one micro-batch to the next, but something to ask of the task.
    def outputs(key: jax.Array, batch: Any) -> Any:
        return task.loss(*task.init(key), batch, key, True).outputs

    logits = jax.eval_shape(outputs, jax.random.key(0), batch)
    if len(getattr(logits, "shape", ())) != 2:
        raise ValueError(
            f"TRADES compares logits, and the loss of the task {task.name} returns none: let it return "
            "LossOutput(mean, weight, model_state, outputs=logits), logits (n, classes)."
        )
    return ()


@jax.jit
def _probabilities(logits_fn: Partial, params: Params, image: jax.Array) -> jax.Array:
    return jax.nn.softmax(trees.upcast(logits_fn(params, image)))
