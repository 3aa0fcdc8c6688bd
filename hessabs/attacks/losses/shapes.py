"""What logits and labels must look like, each other thing with a sentence on what to do instead.

Shapes and dtypes are known while a function is traced, so the checks hold under ``jit`` as well.
"""

from typing import Any

import jax.numpy as jnp


def check_shapes(logits: Any, labels: Any, name: str = "labels", *, soft: bool = False) -> None:
    """Raise unless the logits are (n, classes) and the labels int (n,).

    Args:
      logits: What the network returned, an array or its shape and dtype.
      labels: An array.
      name: What to call them in the message.
      soft: If True the labels must be probabilities, (n, classes).

    Raises:
      ValueError: If they are not, with what was got and what to do.

    Example:
      >>> check_shapes(jnp.zeros((2, 3)), jnp.zeros((2, 1), int))
      Traceback (most recent call last):
      ValueError: The labels must be int (n,), got int32[2, 1]: pass labels[:, 0].
    """
    if advice := _wrong_logits(logits):
        raise ValueError(
            f"`logits_fn` must return (n, classes), at least 2, got {_describe(logits)}: {advice}."
        )
    rows, classes = logits.shape
    if not hasattr(labels, "shape"):
        raise ValueError(f"The {name} must be an array, got {_describe(labels)}: pass jnp.asarray({name}).")
    if soft:
        if labels.shape != (rows, classes):
            raise ValueError(
                f"The label probabilities must be ({rows}, {classes}), as the logits, got {_describe(labels)}: "
                "pass jax.nn.softmax(logits), or jax.nn.one_hot of labels."
            )
    elif advice := _wrong_labels(labels, name, classes):
        raise ValueError(f"The {name} must be int (n,), got {_describe(labels)}: {advice}.")
    elif labels.shape[0] != rows:
        raise ValueError(
            f"There must be one of the {name} for each row of logits, got {labels.shape[0]} for {rows}."
        )


def _wrong_logits(logits: Any) -> str | None:
    if not hasattr(logits, "shape"):
        return "return the logits alone"
    if len(logits.shape) > 2:
        return "logits of pixels or tokens are out of scope; an example has one row of logits"
    if len(logits.shape) < 2 or logits.shape[1] == 1:
        flat = "z" if len(logits.shape) == 1 else "z[:, 0]"
        return f"a model with the one logit z has the logits [0, z], jnp.stack([0 * {flat}, {flat}], axis=1)"
    return None


def _wrong_labels(labels: Any, name: str, classes: int) -> str | None:
    if len(labels.shape) == 2 and labels.shape[1] == 1:
        return f"pass {name}[:, 0]"
    if len(labels.shape) == 2 and labels.shape[1] == classes:
        return f"if they are one-hot pass jnp.argmax({name}, axis=-1); probabilities are what `kl` takes"
    if len(labels.shape) > 1:
        return f"{name} of pixels or tokens are out of scope; an example has one"
    if len(labels.shape) == 0:
        return "there is one for each example"
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return f"pass {name}.astype(jnp.int32)"
    return None


def _describe(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else f"a {type(x).__name__}"
