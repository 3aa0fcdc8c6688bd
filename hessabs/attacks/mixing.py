"""The mixing step of ABSA: adversarial examples take the place of some clean ones."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from hessabs.typing import Attack, LossFn, Params


def num_replaced(fraction: Any, num_examples: int) -> jax.Array:
    """Count the examples of a batch that a fraction replaces: ``floor(fraction * num_examples)``.

    Args:
      fraction: Fraction of the batch in [0, 1]; may be traced.
      num_examples: Examples in the batch.

    Returns:
      A scalar, int32.

    Example:
      >>> [int(num_replaced(f, 128)) for f in (0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)]
      [25, 12, 6, 3, 1, 0]
    """
    # The small term undoes a fraction that float32 stores just below a whole number of examples.
    return jnp.floor(jnp.asarray(fraction, jnp.float32) * num_examples + 1e-4).astype(jnp.int32)


def replace_fraction(
    attack: Attack,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    fraction: Any,
    key: jax.Array | None = None,
    *,
    max_fraction: float = 1.0,
) -> Any:
    """Replace the first examples of a batch by adversarial ones; labels and batch size stay.

    ``m = floor(fraction * examples)`` examples are replaced. The fraction may be traced and change from call to
    call without compiling again: the first ``floor(max_fraction * examples)`` examples are attacked (shapes are
    static) and those beyond m discarded.

    Args:
      attack: ``attack(loss_fn, params, batch, key) -> batch``.
      loss_fn: ``loss_fn(params, batch) -> scalar``. The network in it should be in evaluation mode, so that
        batch norm statistics neither mix examples nor change.
      params: The params to attack.
      batch: A pytree with a leading example axis.
      fraction: Fraction of the batch to replace, in [0, max_fraction].
      key: Random key for the attack, if it needs one.
      max_fraction: The largest fraction there will be, a Python float in [0, 1].

    Returns:
      A batch of the same structure, shapes and dtypes.

    Raises:
      ValueError: If ``max_fraction`` lies outside [0, 1].

    Example:
      >>> import hessabs
      >>> batch = {"image": jnp.zeros((5, 1)), "label": jnp.zeros(5)}
      >>> loss = lambda w, batch: jnp.mean(batch["image"] * w)
      >>> mixed = replace_fraction(hessabs.attacks.fgsm(0.5), loss, jnp.ones(()), batch, 0.4)
      >>> mixed["image"][:, 0]
      Array([0.5, 0.5, 0. , 0. , 0. ], dtype=float32)

    References:
      Yao et al. (2018), arXiv:1810.01021, Algorithm 1.
    """
    num_examples = jax.tree.leaves(batch)[0].shape[0]
    attacked, clean = attacked_head(
        attack, loss_fn, params, batch, num_replaced(fraction, num_examples), max_fraction, key
    )
    del clean
    size = jax.tree.leaves(attacked)[0].shape[0]
    return jax.tree.map(lambda head, x: jnp.concatenate([head, x[size:]]), attacked, batch)


def attacked_head(
    attack: Attack,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    num_examples: jax.Array,
    max_fraction: float,
    key: jax.Array | None = None,
) -> tuple[Any, Any]:
    """Attack the head of a batch, the part that may be replaced at all.

    Args:
      attack: ``attack(loss_fn, params, batch, key) -> batch``.
      loss_fn: ``loss_fn(params, batch) -> scalar``.
      params: The params to attack.
      batch: A pytree with a leading example axis.
      num_examples: How many of the first examples to replace, a scalar int32, may be traced.
      max_fraction: The head is the first ``floor(max_fraction * examples)`` examples.
      key: Random key for the attack, if it needs one.

    Returns:
      (head in which the first ``num_examples`` are replaced, the clean head).

    Raises:
      ValueError: If ``max_fraction`` lies outside [0, 1].
    """
    if not 0 <= max_fraction <= 1:
        raise ValueError(f"`max_fraction` must lie in [0, 1], got {max_fraction}.")
    leaves = jax.tree.leaves(batch)
    size = math.floor(max_fraction * leaves[0].shape[0] + 1e-4)
    clean = jax.tree.map(lambda x: x[:size], batch)
    if size == 0:
        return clean, clean
    perturbed = attack(loss_fn, params, clean, key)
    chosen = jnp.arange(size) < num_examples

    def select(adversarial: jax.Array, original: jax.Array) -> jax.Array:
        shape = (size,) + (1,) * (original.ndim - 1)
        return jnp.where(chosen.reshape(shape), adversarial, original)

    return jax.tree.map(select, perturbed, clean), clean
