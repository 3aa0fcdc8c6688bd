"""A loss that carries its logits: how it is made and taken apart, and what logits and labels must look like.

Shapes and dtypes are known while a function is traced, so the checks hold under ``jit`` as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.inputs import get_inputs, get_leaf
from hessabs.typing import LossFn, Params

LogitsFn = Callable[[Params, Any], jax.Array]
"""``logits_fn(params, inputs) -> (n, classes)``, examples not influencing each other."""

Criterion = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""``criterion(logits (n, classes), labels (n,), targets (n,) or None) -> (n,)``, what an attack raises."""


class Spec(NamedTuple):
    """Where a loss finds what, and which of it counts."""

    targeted: bool
    inputs_key: str | int
    label_key: str | int
    target_key: str | int
    soft_labels: bool


def from_logits(
    logits_fn: LogitsFn,
    criterion: Criterion,
    *,
    targeted: bool = False,
    inputs_key: str | int = "image",
    label_key: str | int = "label",
    target_key: str | int = "target",
    soft_labels: bool = False,
) -> LossFn:
    """Make a loss that carries its logits, of a criterion of your own.

    Args:
      logits_fn: ``logits_fn(params, inputs) -> (n, classes)``. A normalisation of the inputs belongs inside it,
        so that epsilon and bounds are in the units of the batch.
      criterion: ``criterion(logits, labels, targets) -> (n,)``, logits at least float32; what an attack raises,
        example by example. ``targets`` is None unless ``targeted``.
      targeted: If True an example has fallen when it is classified as its target, else when it is not
        classified as its label.
      inputs_key, label_key, target_key: Key, field name or index, in the batch, of the inputs, of the labels,
        int (n,), and of the targets, int (n,), which are only read when ``targeted``.
      soft_labels: If True the labels are class probabilities, float (n, classes); an example has fallen when it
        is not classified as the most probable class.

    Returns:
      ``loss_fn(params, batch) -> scalar``, the mean; a pytree, so new arrays bound in ``logits_fn`` compile
      nothing. It raises ``ValueError``, under ``jit`` too, when logits, labels or targets have another shape or
      dtype. Pixels or tokens with a label each are out of scope.

    Example:
      >>> logits_fn = lambda w, x: x @ w
      >>> loss_fn = from_logits(logits_fn, lambda z, labels, targets: -z[jnp.arange(len(labels)), labels])
      >>> batch = {"image": jnp.array([[1.0, 2.0]]), "label": jnp.array([1])}
      >>> loss_fn(jnp.eye(2), batch)
      Array(-2., dtype=float32)
    """
    spec = Spec(targeted, inputs_key, label_key, target_key, soft_labels)
    return Partial(_mean_loss, trees.as_partial(logits_fn), trees.as_partial(criterion), trees.Static(spec))


def carries_logits(loss_fn: LossFn) -> bool:
    """Tell whether a loss was made by ``from_logits``.

    Args:
      loss_fn: Any loss.

    Returns:
      True if the logits can be had from it.
    """
    return isinstance(loss_fn, Partial) and loss_fn.func is _mean_loss


def parts(loss_fn: LossFn, wanted_by: str = "This attack") -> tuple[LogitsFn, Spec]:
    """Return the logits function of a loss, and where it finds what.

    Args:
      loss_fn: A loss of this package.
      wanted_by: Who asks, for the message.

    Returns:
      ``(logits_fn, spec)``; ``spec`` has the arguments of ``from_logits`` as fields.

    Raises:
      ValueError: If the loss does not carry its logits.
    """
    if not carries_logits(loss_fn):
        raise ValueError(
            f"{wanted_by} needs the logits: pass a loss that carries them, for instance "
            f"attacks.losses.cross_entropy(logits_fn), got {loss_fn!r}."
        )
    logits_fn, _, spec = loss_fn.args  # type: ignore[attr-defined]
    return logits_fn, spec.value


def class_parts(loss_fn: LossFn, wanted_by: str) -> tuple[LogitsFn, Spec]:
    """Return the ``parts`` of a loss whose labels are classes, for who walks from one class to another."""
    logits_fn, spec = parts(loss_fn, wanted_by)
    if spec.soft_labels:
        raise ValueError(
            f"{wanted_by} needs classes for labels, got a loss of soft labels: pass cross_entropy or margin, "
            "and jnp.argmax(probabilities, axis=-1)."
        )
    return logits_fn, spec


def criterion_of(loss_fn: LossFn) -> Criterion:
    """Return what a loss that carries its logits makes of them."""
    return loss_fn.args[1]  # type: ignore[attr-defined]


def checked_classes(spec: Spec, logits: Any, batch: Any) -> tuple[Any, Any]:
    """Take labels and targets out of a batch, and see whether they fit the logits."""
    labels, targets = classes_of(spec, batch)
    if labels is not None:
        _check_shapes(logits, labels, soft=spec.soft_labels)
    if targets is not None:
        _check_shapes(logits, targets, "targets")
    return labels, targets


def classes_of(spec: Spec, batch: Any) -> tuple[Any, Any]:
    """Take labels and targets out of a batch: no targets for an untargeted loss, labels if there are any."""
    if not spec.targeted:
        return get_leaf(batch, spec.label_key, "The loss reads the labels"), None
    targets = get_leaf(batch, spec.target_key, "The loss reads the targets of a targeted attack")
    try:
        return get_leaf(batch, spec.label_key, "The loss reads the labels"), targets
    except ValueError:
        return None, targets


def _mean_loss(
    logits_fn: LogitsFn, criterion: Criterion, spec: trees.Static, params: Params, batch: Any
) -> jax.Array:
    logits = logits_fn(params, get_inputs(batch, spec.value.inputs_key))
    classes = checked_classes(spec.value, logits, batch)
    return jnp.mean(criterion(trees.upcast(logits), *classes))


def _check_shapes(logits: Any, labels: Any, name: str = "labels", *, soft: bool = False) -> None:
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
