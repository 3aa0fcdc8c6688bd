"""Losses that carry the logits they are made of: the one convention for attacks that look at classes.

A loss of this file is ``loss_fn(params, batch) -> scalar`` like any other, the mean over the batch of what an
attack RAISES. It is a ``jax.tree_util.Partial`` that also holds ``logits_fn(params, inputs) -> (n, classes)``
and says where the labels are, so one argument tells an attack everything: what to raise, when an example has
fallen, and which classes there are. Any other loss works with the attacks that need the gradient alone; the
value of one example is then the loss of the batch that holds it alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks.inputs import get_inputs, with_inputs
from hessabs.typing import LossFn, Params

LogitsFn = Callable[[Params, Any], jax.Array]
"""``logits_fn(params, inputs) -> (n, classes)``, examples not influencing each other."""

Criterion = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""``criterion(logits (n, classes), labels (n,), targets (n,) or None) -> (n,)``, what an attack raises."""


class Spec(NamedTuple):
    """What a loss is made of beside the network."""

    criterion: Criterion
    targeted: bool
    inputs_key: str | int
    label_key: str | int
    target_key: str | int


def from_logits(
    logits_fn: LogitsFn,
    criterion: Criterion,
    *,
    targeted: bool = False,
    inputs_key: str | int = "image",
    label_key: str | int = "label",
    target_key: str | int = "target",
) -> LossFn:
    """Make a loss that carries its logits, of a criterion of your own.

    Args:
      logits_fn: ``logits_fn(params, inputs) -> (n, classes)``. A normalisation of the inputs belongs inside it,
        so that epsilon and bounds are in the units of the batch.
      criterion: ``criterion(logits, labels, targets) -> (n,)``, logits at least float32; what an attack raises,
        example by example. ``targets`` is None unless ``targeted``.
      targeted: If True an example has fallen when it is classified as its target, else when it is not
        classified as its label.
      inputs_key: Key, field name or index of the inputs in the batch.
      label_key: The same for the labels, int (n,).
      target_key: The same for the targets, int (n,); only read when ``targeted``.

    Returns:
      ``loss_fn(params, batch) -> scalar``, the mean; a pytree, so new arrays bound in ``logits_fn`` compile
      nothing.

    Example:
      >>> logits_fn = lambda w, x: x @ w
      >>> loss_fn = from_logits(logits_fn, lambda z, labels, targets: -z[jnp.arange(len(labels)), labels])
      >>> batch = {"image": jnp.array([[1.0, 2.0]]), "label": jnp.array([1])}
      >>> loss_fn(jnp.eye(2), batch)
      Array(-2., dtype=float32)
    """
    spec = Spec(criterion, targeted, inputs_key, label_key, target_key)
    return Partial(_mean_loss, trees.as_partial(logits_fn), trees.Static(spec))


def cross_entropy(logits_fn: LogitsFn, **options: Any) -> LossFn:
    """Make the cross-entropy of the label, or minus that of the target.

    Args:
      logits_fn: As in ``from_logits``.
      **options: ``targeted`` and the keys, as in ``from_logits``.

    Returns:
      ``loss_fn(params, batch) -> scalar`` in nats.

    Example:
      >>> batch = {"image": jnp.array([[0.0, 0.0]]), "label": jnp.array([1])}
      >>> round(float(cross_entropy(lambda w, x: x @ w)(jnp.eye(2), batch)), 4)
      0.6931
    """
    return from_logits(logits_fn, _cross_entropy, **options)


def margin(logits_fn: LogitsFn, **options: Any) -> LossFn:
    """Make the margin: the best other logit minus the label's; targeted, the target's minus the best other.

    Positive exactly when the example has fallen.

    Args:
      logits_fn: As in ``from_logits``.
      **options: ``targeted`` and the keys, as in ``from_logits``.

    Returns:
      ``loss_fn(params, batch) -> scalar``.

    Example:
      >>> batch = {"image": jnp.array([[3.0, 1.0]]), "label": jnp.array([0])}
      >>> margin(lambda w, x: x @ w)(jnp.eye(2), batch)
      Array(-2., dtype=float32)

    References:
      Carlini and Wagner (2017), arXiv:1608.04644, section V-A, f_6 without its confidence.
    """
    return from_logits(logits_fn, _margin, **options)


def dlr(logits_fn: LogitsFn, **options: Any) -> LossFn:
    """Make the difference-of-logits ratio, which neither the scale nor the shift of the logits changes.

    ``-(z_y - max_{i != y} z_i) / (z_1 - z_3)`` with ``z_1 >= z_2 >= ...`` the sorted logits; targeted,
    ``-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2)``. It is 0 where the denominator is.

    Args:
      logits_fn: As in ``from_logits``, with at least 3 classes, 4 when targeted.
      **options: ``targeted`` and the keys, as in ``from_logits``; labels are read in both cases.

    Returns:
      ``loss_fn(params, batch) -> scalar``. It raises ``ValueError`` when there are too few classes.

    Example:
      >>> batch = {"image": jnp.array([[3.0, 1.0, -1.0]]), "label": jnp.array([0])}
      >>> dlr(lambda w, x: x @ w)(jnp.eye(3), batch)
      Array(-0.5, dtype=float32)

    References:
      Croce and Hein (2020), arXiv:2003.01690, equations 6 and 7.
    """
    return from_logits(logits_fn, _dlr, **options)


def kl(logits_fn: LogitsFn, *, label_key: str | int = "probabilities", **options: Any) -> LossFn:
    """Make the Kullback-Leibler divergence from given class probabilities, as TRADES raises it.

    ``sum_k p_k (log p_k - log softmax(z)_k)``; an example has fallen when it is no longer classified as the
    most probable class. There is no targeted form: give the probabilities to leave.

    Args:
      logits_fn: As in ``from_logits``.
      label_key: Key, field name or index of the probabilities in the batch, float (n, classes).
      **options: ``inputs_key``, as in ``from_logits``.

    Returns:
      ``loss_fn(params, batch) -> scalar`` in nats.

    Example:
      >>> batch = {"image": jnp.array([[0.0, 0.0]]), "probabilities": jnp.array([[1.0, 0.0]])}
      >>> round(float(kl(lambda w, x: x @ w)(jnp.eye(2), batch)), 4)
      0.6931

    References:
      Zhang et al. (2019), arXiv:1901.08573, equation 5.
    """
    if options.get("targeted"):
        raise ValueError("`kl` has no targeted form, got targeted=True; use cross_entropy or margin.")
    return from_logits(logits_fn, _kl, label_key=label_key, **options)


def per_example(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int
) -> tuple[jax.Array, jax.Array]:
    """Evaluate a loss for each example by itself.

    Args:
      loss_fn: A loss of this file, or any mean over examples that do not influence each other.
      params: What the loss takes.
      batch: n examples.
      inputs_key: Where the inputs are; only read for other losses, to see which dtype they have.

    Returns:
      ``(values, fallen)``, (n,) in at least float32 and (n,) bool; a loss without logits says False throughout.
    """
    if carries_logits(loss_fn):
        logits_fn, spec = parts(loss_fn)
        logits = upcast(logits_fn(params, get_inputs(batch, spec.inputs_key)))
        return spec.criterion(logits, *classes_of(spec, batch)), has_fallen(spec, logits, batch)

    def alone(example: Any) -> jax.Array:
        return loss_fn(params, jax.tree.map(lambda x: x[None], example))

    values = upcast(jax.vmap(alone)(batch))
    return values, jnp.zeros(values.shape, bool)


def with_gradient(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Evaluate a loss and its gradient for each example by itself.

    Args:
      loss_fn: As in ``per_example``.
      params: What the loss takes.
      batch: n examples.
      inputs_key: Where the inputs are.

    Returns:
      ``(values, fallen, gradient)``: (n,), (n,) and like the inputs. An entry of the gradient that is not
      finite is 0: that example stays where it is, and no other one knows.
    """

    def total(inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        values, fallen = per_example(loss_fn, params, with_inputs(batch, inputs_key, inputs), inputs_key)
        return jnp.sum(values), (values, fallen)

    gradient, (values, fallen) = jax.grad(total, has_aux=True)(get_inputs(batch, inputs_key))
    return values, fallen, jnp.where(jnp.isfinite(gradient), gradient, 0)


def carries_logits(loss_fn: LossFn) -> bool:
    """Tell whether a loss was made by ``from_logits``."""
    return isinstance(loss_fn, Partial) and loss_fn.func is _mean_loss


def parts(loss_fn: LossFn, wanted_by: str = "This attack") -> tuple[LogitsFn, Spec]:
    """Return the logits function of a loss and its description.

    Args:
      loss_fn: A loss of this file.
      wanted_by: Who asks, for the message.

    Returns:
      ``(logits_fn, spec)``.

    Raises:
      ValueError: If the loss does not carry its logits.
    """
    if not carries_logits(loss_fn):
        raise ValueError(
            f"{wanted_by} needs the logits: pass a loss that carries them, for instance "
            f"attacks.losses.cross_entropy(logits_fn), got {loss_fn!r}."
        )
    logits_fn, spec = loss_fn.args  # type: ignore[attr-defined]
    return logits_fn, spec.value


def classes_of(spec: Spec, batch: Any) -> tuple[Any, Any]:
    """Take labels and targets out of a batch.

    Args:
      spec: Says where they are.
      batch: A mapping, a named tuple, a tuple or a list.

    Returns:
      ``(labels, targets)``. Targets are None for an untargeted loss, labels None if a targeted one has none.

    Raises:
      ValueError: If the batch has no labels, or a targeted loss finds no targets.
    """
    if not spec.targeted:
        return _leaf(batch, spec.label_key, "the labels"), None
    targets = _leaf(batch, spec.target_key, "the targets of a targeted attack")
    try:
        return _leaf(batch, spec.label_key, "the labels"), targets
    except ValueError:
        return None, targets


def other_classes(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logits with that of one class a row put to minus infinity.

    Args:
      logits: Shape (n, classes).
      classes: Shape (n,), int.

    Returns:
      Shape (n, classes).
    """
    return jnp.where(jax.nn.one_hot(classes, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def take_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logit of one class a row.

    Args:
      logits: Shape (n, classes).
      classes: Shape (n,), int.

    Returns:
      Shape (n,).
    """
    return jnp.take_along_axis(logits, classes[:, None].astype(jnp.int32), axis=-1)[:, 0]


def has_fallen(spec: Spec, logits: jax.Array, batch: Any) -> jax.Array:
    """Tell which examples have fallen: classified as their target, or not as their label.

    Args:
      spec: Says where labels and targets are, and which of them counts.
      logits: Shape (n, classes).
      batch: n examples.

    Returns:
      Shape (n,), bool.
    """
    labels, targets = classes_of(spec, batch)
    wanted = targets if spec.targeted else labels
    wanted = jnp.argmax(wanted, axis=-1) if wanted.ndim == 2 else wanted
    return (jnp.argmax(logits, axis=-1) == wanted) == spec.targeted


def upcast(x: jax.Array) -> jax.Array:
    """Return an array in its dtype, float32 at the least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def check_classes(loss_fn: LossFn, params: Params, batch: Any) -> None:
    """Raise when the labels or targets of a batch are no classes of the network.

    Args:
      loss_fn: Any loss; nothing is checked of one that does not carry its logits.
      params: What the loss takes.
      batch: The batch; traced values are not looked at.

    Raises:
      ValueError: If labels or targets are missing or out of range.
    """
    if not carries_logits(loss_fn):
        return
    logits_fn, spec = parts(loss_fn)
    labels, targets = classes_of(spec, batch)
    if trees.is_traced(labels, targets):
        return
    num_classes = jax.eval_shape(logits_fn, params, get_inputs(batch, spec.inputs_key)).shape[-1]
    for name, values in (("labels", labels), ("targets", targets)):
        if values is None or jnp.ndim(values) != 1:
            continue
        known = np.asarray(values)
        low, high = int(known.min()), int(known.max())
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"The {name} must lie in [0, {num_classes - 1}], one of {num_classes} classes, "
                f"got values from {low} to {high}."
            )


def _mean_loss(logits_fn: LogitsFn, spec: trees.Static, params: Params, batch: Any) -> jax.Array:
    logits = upcast(logits_fn(params, get_inputs(batch, spec.value.inputs_key)))
    return jnp.mean(spec.value.criterion(logits, *classes_of(spec.value, batch)))


def _cross_entropy(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(logits)
    return -take_class(log_probabilities, labels) if targets is None else take_class(log_probabilities, targets)


def _margin(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    wanted = labels if targets is None else targets
    lead = take_class(logits, wanted) - jnp.max(other_classes(logits, wanted), axis=-1)
    return -lead if targets is None else lead


def _dlr(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    needed = 3 if targets is None else 4
    if logits.shape[-1] < needed:
        kind = "" if targets is None else "targeted "
        raise ValueError(
            f"The {kind}difference-of-logits ratio needs at least {needed} classes, got {logits.shape[-1]}."
        )
    if labels is None:
        raise ValueError("The targeted difference-of-logits ratio needs the labels too, the batch has none.")
    ordered = -jnp.sort(-logits, axis=-1)
    if targets is None:
        rival, spread = jnp.max(other_classes(logits, labels), axis=-1), ordered[:, 0] - ordered[:, 2]
    else:
        rival, spread = take_class(logits, targets), ordered[:, 0] - (ordered[:, 2] + ordered[:, 3]) / 2
    return (rival - take_class(logits, labels)) * trees.safe_inverse(spread)


def _kl(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    del targets
    return jnp.sum(jax.scipy.special.xlogy(labels, labels) - labels * jax.nn.log_softmax(logits), axis=-1)


def _leaf(batch: Any, key: str | int, what: str) -> jax.Array:
    try:
        return batch[key] if isinstance(key, int) or hasattr(batch, "keys") else getattr(batch, key)
    except (KeyError, IndexError, AttributeError, TypeError):
        keys = list(batch) if hasattr(batch, "keys") else getattr(batch, "_fields", type(batch).__name__)
        raise ValueError(f"The loss reads {what} at key {key!r}, but the batch has {keys}.") from None
