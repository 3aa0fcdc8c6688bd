"""TRADES: the clean loss, plus how far predictions nearby can be from those of the clean images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import losses
from hessabs.training.losses import cross_entropy, evaluation_logits, training_logits, weighted_mean
from hessabs.training.robust.inner import InnerAttack
from hessabs.training.robust.objective import Contribution, Objective
from hessabs.typing import Params

ADVERSARIAL = "adversarial"  # the key of the attacked images, beside the clean ones


def trades(inner: InnerAttack, beta: float) -> Objective:
    """Make the objective of TRADES, ``J(f(x), y) + beta max_x' KL(f(x) || f(x'))``.

    Args:
      inner: The inner maximisation, of the divergence and with the network in evaluation mode. It must start
        at random: at x itself the divergence and its gradient are 0.
      beta: Weight of the divergence, at least 0 (1 / lambda of the paper).

    Returns:
      An ``Objective``. Clean and attacked images make one training pass each, in this order, as published:
      batch norm sees them apart and counts both in its statistics.

    References:
      Zhang et al. (2019), arXiv:1901.08573, equation 5 and Algorithm 1. Differs from the published code: the
      attack starts uniformly in the ball, not at a Gaussian of size 0.001, and the best point is taken.
    """

    def perturb(
        model: nn.Module, params: Params, model_state: Any, batch: Any, fraction: Any, key: jax.Array
    ) -> Any:
        del fraction
        logits_fn = evaluation_logits(model, model_state)
        probabilities = _probabilities(logits_fn, params, batch["image"])
        asked = {"image": batch["image"], "probabilities": probabilities}
        found = inner.attack(losses.kl(logits_fn), params, asked, key)
        return {**batch, ADVERSARIAL: found["image"]}

    def gradient(model: nn.Module, params: Params, model_state: Any, batch: Any, memory: Any) -> Contribution:
        def loss_fn(params: Params) -> tuple[jax.Array, Any]:
            clean, state = training_logits(model, model_state, params, batch["image"])
            attacked, state = training_logits(model, state, params, batch[ADVERSARIAL])
            log_p, log_q = (jax.nn.log_softmax(z.astype(jnp.float32)) for z in (clean, attacked))
            divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
            return cross_entropy(clean, batch) + beta * weighted_mean(divergence, batch), state

        (loss, new_state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        return Contribution(loss, gradient, new_state, memory)

    return Objective(gradient, perturb, inner.driven_by_python, passes=2, fraction=1.0)


@jax.jit
def _probabilities(logits_fn: Partial, params: Params, image: jax.Array) -> jax.Array:
    return jax.nn.softmax(trees.upcast(logits_fn(params, image)))
