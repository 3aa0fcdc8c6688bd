"""The adversarial step as an optax gradient transformation."""

from typing import Any

import jax
import optax

from hessabs import batch_axis
from hessabs.attacks.mixing import attacked_head, num_replaced
from hessabs.collectives import pmean
from hessabs.typing import Attack, LossFn, Params


def adversarial_gradient(
    attack: Attack, *, max_fraction: float = 0.2, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Turn the gradient of a batch into that of the batch with its first examples attacked.

    With m of n examples replaced, the mean loss over the mixed batch has the gradient
    ``g + (1 / n) sum_{i < m} (grad l(adversarial_i) - grad l(x_i))``: it is computed from the incoming clean
    gradient ``g`` and the head of the batch alone.

    ``update`` takes the extra arguments ``loss_fn`` and ``batch`` (required: those of the incoming gradient,
    the loss a mean over examples that do not influence each other, so batch norm in evaluation mode),
    ``adversarial_fraction`` (may be traced; ``max_fraction`` if not given) and ``key`` (for attacks that need
    one). Place it first in a chain, outside ``optax.masked``.

    Args:
      attack: ``attack(loss_fn, params, batch, key) -> batch``, as ``hessabs.attacks.fgsm`` makes it.
      max_fraction: The largest fraction of the batch that will ever be replaced, in [0, 1]. It is static: the
        first ``floor(max_fraction * n)`` examples are attacked at every update.
      axis_name: The mapped axis over which the batch is split, or None. The incoming gradient is then the mean
        over the devices, and each device attacks the first of its own examples.

    Returns:
      A ``GradientTransformationExtraArgs`` without state. In ``optax.inject_hyperparams`` name the static
      arguments: ``static_args=("attack", "max_fraction", "axis_name")``.

    Raises:
      ValueError: If ``max_fraction`` lies outside [0, 1]; from ``update``, if params, loss or batch are
        missing.

    Example:
      >>> import hessabs, jax.numpy as jnp
      >>> loss = lambda w, batch: jnp.mean((batch["image"] @ w) ** 2)
      >>> batch = {"image": jnp.array([[0.5], [0.5]])}
      >>> w = jnp.ones(1)
      >>> tx = adversarial_gradient(hessabs.attacks.fgsm(0.5), max_fraction=0.5)
      >>> updates, _ = tx.update(jax.grad(loss)(w, batch), tx.init(w), w, loss_fn=loss, batch=batch)
      >>> updates  # (2 * 1.0**2 + 2 * 0.5**2) / 2
      Array([1.25], dtype=float32)

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1.
    """
    if not 0 <= max_fraction <= 1:
        raise ValueError(f"`max_fraction` must lie in [0, 1], got {max_fraction}.")

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: Params | None = None,
        *,
        loss_fn: LossFn | None = None,
        batch: Any = None,
        adversarial_fraction: Any = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        missing = [
            name
            for name, value in (("params", params), ("loss_fn", loss_fn), ("batch", batch))
            if value is None
        ]
        if loss_fn is None or missing:
            raise ValueError(
                f"adversarial_gradient needs {', '.join(missing)}: call "
                "update(gradient, state, params, loss_fn=..., batch=...)."
            )
        num_examples = batch_axis.num_examples(batch)
        fraction = max_fraction if adversarial_fraction is None else adversarial_fraction
        adversarial, clean = attacked_head(
            attack, loss_fn, params, batch, num_replaced(fraction, num_examples), max_fraction, key
        )
        size = batch_axis.num_examples(clean)
        if size == 0:
            return updates, state

        def difference(p: Params) -> jax.Array:
            return pmean(loss_fn(p, adversarial) - loss_fn(p, clean), axis_name)

        # Averaged inside and outside of the derivative: see hessabs.curvature.operators.
        correction = pmean(jax.grad(difference)(params), axis_name)
        updates = jax.tree.map(
            lambda g, c: (g + (size / num_examples) * c).astype(g.dtype), updates, correction
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
