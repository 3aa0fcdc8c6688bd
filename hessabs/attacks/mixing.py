"""The mixing step of ABSA: adversarial examples take the place of some clean ones."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, trees
from hessabs.attacks.rows import choose
from hessabs.checks import require
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
    # The small terms undo what float32 makes of a whole number of examples, by its last digits.
    product = jnp.asarray(fraction, jnp.float32) * num_examples
    return jnp.floor(product + 2 * jnp.finfo(jnp.float32).eps * product + 1e-4).astype(jnp.int32)


def replace_fraction(
    attack: Attack,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    fraction: Any,
    key: jax.Array | None = None,
    *,
    max_fraction: float = 1.0,
    part_size: int | None = None,
) -> Any:
    """Replace the first examples of a batch by adversarial ones; labels and batch size stay.

    ``m = floor(fraction * examples)`` examples are replaced. The fraction may be traced and change from call to
    call without compiling again: the first ``floor(max_fraction * examples)`` examples are attacked (shapes are
    static) and those beyond m discarded.

    Args:
      attack, loss_fn, params, batch, key: As in every attack (``hessabs.attacks``). The network in the loss
        should be in evaluation mode, so that batch norm statistics neither mix examples nor change.
      fraction: Fraction of the batch to replace, in [0, max_fraction]. A traced one beyond it makes the whole
        batch NaN.
      max_fraction: The largest fraction there will be, a Python float in [0, 1].
      part_size: Examples in a part, a divisor of the batch, if the batch is several micro-batches one behind
        the other: the first examples of each part are then replaced, all in one call of the attack, so that
        the examples that are attacked do not depend on how many micro-batches are handled at once.

    Returns:
      A batch of the same structure, shapes and dtypes.

    Raises:
      ValueError: If ``max_fraction`` lies outside [0, 1], ``fraction`` lies above it (and is not traced), or
        ``part_size`` does not divide the batch.

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
    num_examples = batch_axis.num_examples(batch)
    part = num_examples if part_size is None else part_size
    if part < 1 or num_examples % part:
        raise ValueError(f"`part_size` must divide the batch of {num_examples} examples, got {part_size}.")
    beyond = beyond_maximum(fraction, max_fraction, part)
    parts, size = num_examples // part, head_size(max_fraction, part)

    def take(x: jax.Array) -> jax.Array:
        return x.reshape(parts, part, *x.shape[1:])[:, :size].reshape(parts * size, *x.shape[1:])

    def join(x: jax.Array, head: jax.Array) -> jax.Array:
        head = head.reshape(parts, size, *x.shape[1:])
        tail = x.reshape(parts, part, *x.shape[1:])[:, size:]
        return jnp.concatenate([head, tail], axis=1).reshape(x.shape)

    heads = batch_axis.map_examples(take, batch)
    chosen = jnp.tile(jnp.arange(size), parts) < num_replaced(fraction, part)
    attacked = _replace(attack, loss_fn, params, heads, chosen, key)
    return made_visible(beyond, batch_axis.map_examples(join, batch, attacked))


def beyond_maximum(fraction: Any, max_fraction: float, num_examples: int) -> bool | jax.Array:
    """Tell, for ``made_visible``, whether a fraction asks for more examples than the head of a batch has.

    A fraction that is not traced raises where it does; NaN does.
    """
    traced = trees.is_traced(fraction)
    wanted: Any = jnp.asarray(fraction, jnp.float32) if traced else np.float32(fraction)
    # The same fraction again is never beyond itself, however its product with the examples is rounded.
    within = wanted <= max_fraction * (1 + 1e-6)
    within |= wanted * num_examples + 1e-4 < head_size(max_fraction, num_examples) + 1
    if traced:
        return ~within
    if not within:
        raise ValueError(
            f"The fraction to replace must be at most max_fraction={max_fraction}, got {fraction}: give the "
            "largest fraction there will be as `max_fraction`."
        )
    return False


def made_visible(beyond: bool | jax.Array, tree: Any) -> Any:
    """Turn a result into NaN where ``beyond_maximum`` is true, for it would be that of another fraction."""
    if beyond is False:
        return tree

    def show(x: Any) -> Any:
        return jnp.where(beyond, jnp.nan, x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x

    return jax.tree.map(show, tree)


def attacked_head(
    attack: Attack,
    loss_fn: LossFn,
    params: Params,
    batch: Any,
    num_examples: jax.Array,
    max_fraction: float,
    key: jax.Array | None = None,
) -> tuple[Any, Any]:
    """Return the head of a batch, of which ``num_examples`` are replaced, and the clean head.

    The head is the first ``floor(max_fraction * examples)`` examples; ``num_examples`` may be traced.
    """
    size = head_size(max_fraction, batch_axis.num_examples(batch))
    clean = batch_axis.map_examples(lambda x: x[:size], batch)
    return _replace(attack, loss_fn, params, clean, jnp.arange(size) < num_examples, key), clean


def head_size(max_fraction: float, num_examples: int) -> int:
    """Count the examples that may be replaced, a shape: as ``num_replaced`` of the largest fraction."""
    require("lie in [0, 1]", max_fraction=max_fraction)
    return math.floor(max_fraction * num_examples + 1e-4)


def _replace(
    attack: Attack, loss_fn: LossFn, params: Params, clean: Any, chosen: jax.Array, key: jax.Array | None
) -> Any:
    if chosen.size == 0:
        return clean
    attacked = attack(loss_fn, params, clean, key)
    return batch_axis.map_examples(lambda old, new: choose(chosen, new, old), clean, attacked)
