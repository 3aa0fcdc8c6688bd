"""Expectation over randomness: losses of networks that draw random numbers, averaged over several draws.

A loss gets its random numbers from a key: a leaf of the batch, or an argument bound with
``jax.tree_util.Partial``. A draw folds its number into every such key. An attack that follows one draw learns
its way around that draw alone. ``eot`` is the number of draws, or None for the loss as it is.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks.losses import examples
from hessabs.typing import LossFn, Params


def check_draws(eot: int | None) -> None:
    """Raise unless a number of draws is None or at least 1."""
    if eot is not None and eot < 1:
        raise ValueError(f"`eot` must be None or at least 1, got {eot}.")


def check_keys(eot: int | None, loss_fn: LossFn, batch: Any) -> None:
    """Raise where an expectation is asked for and neither the loss nor the batch holds a random key."""
    if eot is not None and not any(map(_is_key, jax.tree.leaves((trees.as_partial(loss_fn), batch)))):
        raise ValueError(
            f"`eot` asks for {eot} draws, but there is no random key in the batch, nor one bound to the loss "
            "with jax.tree_util.Partial; make it with jax.random.key."
        )


def expected(loss_fn: LossFn, eot: int | None) -> LossFn:
    """Make the mean of a loss over draws.

    Example:
      >>> noisy = lambda w, batch: w * jax.random.normal(batch["key"])
      >>> draws = jnp.stack([jax.random.normal(jax.random.fold_in(jax.random.key(0), i)) for i in range(3)])
      >>> bool(jnp.allclose(expected(noisy, 3)(2.0, {"key": jax.random.key(0)}), 2 * jnp.mean(draws)))
      True
    """
    if eot is None:
        return loss_fn

    def mean_loss(params: Params, batch: Any) -> jax.Array:
        def draw(number: jax.Array) -> jax.Array:
            loss, own = _fold((trees.as_partial(loss_fn), batch), number)
            return loss(params, own)

        return jnp.mean(jax.vmap(draw)(jnp.arange(eot)))

    return mean_loss


def with_gradient(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int, eot: int | None, i: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Evaluate a loss and its gradient as ``losses.examples`` does, in the mean over draws.

    Evaluation i has draws of its own, ``i * eot`` to ``(i + 1) * eot - 1``. An example has fallen if it fell in
    every draw.
    """
    if eot is None:
        return examples.with_gradient(loss_fn, params, batch, inputs_key)

    def draw(number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        loss, own = _fold((trees.as_partial(loss_fn), batch), number)
        return examples.with_gradient(loss, params, own, inputs_key)

    values, fallen, gradients = jax.vmap(draw)(i * eot + jnp.arange(eot))
    return jnp.mean(values, axis=0), jnp.all(fallen, axis=0), jnp.mean(gradients, axis=0)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _fold(tree: Any, number: jax.Array) -> Any:
    def fold(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        folded = jax.vmap(lambda key: jax.random.fold_in(key, number))(leaf.reshape(-1))
        return folded.reshape(leaf.shape)

    return jax.tree.map(fold, tree)
