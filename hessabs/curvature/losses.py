"""What the library asks of the losses and models of its callers: called, checked, their extras dropped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import explanations, trees


def without_aux(function: Callable[..., Any], has_aux: bool) -> Partial:
    """Make a loss or a model a pytree that returns its first result alone."""
    made = trees.as_partial(function)
    return Partial(_first, made) if has_aux else made


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the caller; what a library of models raises is put into words that help."""
    try:
        return function(*args)
    except Exception as error:
        if (advice := explanations.of_error(error) or explanations.of_call(error, function, args)) is None:
            raise
        raise ValueError(advice) from error


def scalar(loss_fn: Callable[..., Any], *args: Any) -> jax.Array:
    """Call a loss and check that it returns one number."""
    loss = call(loss_fn, *args)
    if isinstance(loss, tuple | list):
        raise ValueError(
            f"`loss_fn` must return a scalar, got a {type(loss).__name__} of {len(loss)}. If it returns "
            "(loss, aux), pass `has_aux=True`, or return the loss alone, as the loss on the outputs of "
            "`gauss_newton` must, whose `has_aux` is the model's."
        )
    if not hasattr(loss, "dtype") and not isinstance(loss, int | float):
        raise ValueError(f"`loss_fn` must return a scalar, got {loss!r}.")
    if jnp.shape(loss) != ():
        raise ValueError(
            f"`loss_fn` must return a scalar, the mean over the batch, got shape {jnp.shape(loss)}."
        )
    return loss


def _first(function: Callable[..., Any], *args: Any) -> Any:
    result = call(function, *args)
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ValueError(
            "`has_aux=True` asks for a function that returns (result, aux), got "
            f"{f'a tuple of {len(result)}' if isinstance(result, tuple) else type(result).__name__}."
        )
    return result[0]
