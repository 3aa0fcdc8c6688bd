"""The adversarial step as an optax gradient transformation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from hessabs import batch_axis, collectives
from hessabs.attacks.mixing import attacked_head, beyond_maximum, made_visible, num_replaced
from hessabs.checks import require
from hessabs.transforms.arguments import require_arguments
from hessabs.typing import Attack, LossFn, Params


def adversarial_gradient(
    attack: Attack,
    *,
    max_fraction: float = 0.2,
    weight: Callable[[Any], Any] | None = None,
    axis_name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Turn the gradient of a batch into that of the batch with its first examples attacked.

    With m of n examples replaced, the mean loss over the mixed batch has the gradient
    ``g + (1 / n) sum_{i < m} (grad l(adversarial_i) - grad l(x_i))``: it is computed from the incoming clean
    gradient ``g`` and the head of the batch alone. **Not for batch norm in training mode**, where examples
    influence each other: there replace the examples before the gradient is taken, with
    ``hessabs.attacks.replace_fraction`` (``examples/batch_norm.py`` does).

    ``update`` takes the extra arguments ``loss_fn`` and ``batch`` (required: those of the incoming gradient,
    the loss a mean over examples), ``adversarial_fraction`` (may be traced; ``max_fraction`` if not given) and
    ``key`` (for attacks that need one). Place it first in a chain, outside ``optax.masked``.

    Args:
      attack: ``attack(loss_fn, params, batch, key) -> batch``, as ``hessabs.attacks.fgsm`` makes it.
      max_fraction: The largest fraction of the batch that will ever be replaced, in [0, 1], static: the first
        ``floor(max_fraction * n)`` examples are attacked at every update. With a rule it is the rule's own,
        ``float(rule.init().adversarial_fraction)``. A larger one is refused; if traced, the updates are NaN.
      weight: ``weight(batch)``: what the loss divides by, or an array whose sum that is, such as the mask of
        what counts; None for the number of examples.
      axis_name: The mapped axis over which the batch is split, or None. The incoming gradient is then the mean
        over the devices (by ``weight``), and each device attacks the first of its own examples.

    Returns:
      A ``GradientTransformationExtraArgs`` without state. In ``optax.inject_hyperparams`` name the static
      arguments: ``static_args=("attack", "max_fraction", "weight", "axis_name")``.

    Raises:
      ValueError: If ``max_fraction`` lies outside [0, 1]; from ``update``, if params, loss or batch are
        missing, the loss returns more than a scalar, or the fraction lies above ``max_fraction``.

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
    require("lie in [0, 1]", max_fraction=max_fraction)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: Params | None = None,
        *,
        loss_fn: Any = None,
        batch: Any = None,
        adversarial_fraction: Any = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        note = f", the loss in evaluation mode. {_TRAINING_MODE}"
        require_arguments("adversarial_gradient", note, params=params, loss_fn=loss_fn, batch=batch)
        _check_loss(loss_fn, params, batch)
        num_examples = batch_axis.num_examples(batch)
        fraction = max_fraction if adversarial_fraction is None else adversarial_fraction
        beyond = beyond_maximum(fraction, max_fraction, num_examples)
        if key is not None and axis_name is not None:  # random starts of its own on each device
            key = jax.random.fold_in(key, collectives.index(axis_name))
        adversarial, clean = attacked_head(
            attack, loss_fn, params, batch, num_replaced(fraction, num_examples), max_fraction, key
        )
        if batch_axis.num_examples(clean) == 0:
            return made_visible(beyond, updates), state

        def difference(p: Params) -> jax.Array:
            return loss_fn(p, adversarial) - loss_fn(p, clean)

        gradient = jax.grad(difference)(collectives.own(params, axis_name))
        head, whole = (batch_axis.total_weight(weight, part) for part in (clean, batch))
        # What a head without weight has for a gradient may be NaN.
        share = jax.tree.map(lambda c: jnp.where(head > 0, c * head / whole, 0).astype(c.dtype), gradient)
        correction = collectives.weighted_mean(share, None if weight is None else whole, axis_name)
        updates = jax.tree.map(lambda g, c: (g + c).astype(g.dtype), updates, correction)
        return made_visible(beyond, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


_TRAINING_MODE = (
    "For batch norm in training mode replace the examples before the gradient is taken, with "
    "hessabs.attacks.replace_fraction, and leave adversarial_gradient out."
)


def _check_loss(loss_fn: LossFn, params: Params, batch: Any) -> None:
    shape = jax.eval_shape(loss_fn, params, batch)
    if not isinstance(shape, jax.ShapeDtypeStruct) or shape.shape:
        raise ValueError(
            "adversarial_gradient needs a loss that returns one scalar, the mean over examples that do not "
            f"influence each other, got {shape}. {_TRAINING_MODE}"
        )
