"""A loss example by example: its values, its gradients, and which examples have fallen.

Of a network that draws random numbers they are means over ``eot`` draws (expectation over transformation): an
attack that follows one draw learns its way around that draw alone. A loss gets its random numbers from a key, a
leaf of the batch or an argument bound with ``jax.tree_util.Partial``; a draw folds its number into every one.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hessabs import batch_axis, trees
from hessabs.attacks.losses import carrying
from hessabs.attacks.losses.carrying import Spec, carries_logits, checked_classes, parts
from hessabs.checks import count
from hessabs.inputs import get_inputs, with_inputs
from hessabs.typing import LossFn, Params

_SUM_TOLERANCE = 0.02  # what bfloat16 makes of a sum of 1


def per_example(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int
) -> tuple[jax.Array, jax.Array]:
    """Evaluate a loss for each example by itself.

    Args:
      loss_fn: A loss of this package, or any mean over examples that do not influence each other.
      params: What the loss takes.
      batch: n examples.
      inputs_key: Where the inputs are.

    Returns:
      ``(values, fallen)``, (n,) in at least float32 and (n,) bool. A loss without logits says False throughout.
      Where the logits are not finite the value is nan, not known, and the example has not fallen.
    """
    if carries_logits(loss_fn):
        logits_fn, spec = parts(loss_fn)
        logits = logits_fn(params, get_inputs(batch, spec.inputs_key))
        classes = checked_classes(spec, logits, batch)
        values = carrying.criterion_of(loss_fn)(trees.upcast(logits), *classes)
        return jnp.where(usable(logits), values, jnp.nan), has_fallen(spec, logits, batch)

    values = trees.upcast(batch_axis.each_example(lambda one: loss_fn(params, one), batch))
    return values, jnp.zeros(values.shape, bool)


def with_gradient(
    loss_fn: LossFn, params: Params, batch: Any, inputs_key: str | int, eot: int | None = None, i: Any = 0
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Evaluate a loss, which examples have fallen, and its gradient, for each example by itself.

    An entry of the gradient that is not finite is 0: that example stays where it is, and no other one knows. In
    a mean over draws, evaluation i has draws of its own, and an example has fallen if it fell in every one.
    All are constants to who differentiates an attack.
    """

    def draw(loss_fn: LossFn, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        def total(inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            values, fallen = per_example(loss_fn, params, with_inputs(batch, inputs_key, inputs), inputs_key)
            return jnp.sum(values), (values, fallen)

        gradient, (values, fallen) = jax.grad(total, has_aux=True)(get_inputs(batch, inputs_key))
        return trees.constant((values, fallen, trees.finite_or_zero(gradient)))

    if eot is None:
        return draw(loss_fn, batch)
    numbers = i * eot + jnp.arange(eot)
    values, fallen, gradients = jax.vmap(lambda number: draw(*_drawn(loss_fn, batch, number)))(numbers)
    return jnp.mean(values, axis=0), jnp.all(fallen, axis=0), jnp.mean(gradients, axis=0)


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
            loss, own = _drawn(loss_fn, batch, number)
            return loss(params, own)

        return jnp.mean(jax.vmap(draw)(jnp.arange(eot)))

    return mean_loss


def has_fallen(spec: Spec, logits: jax.Array, batch: Any) -> jax.Array:
    """Tell which examples have fallen: classified as their target, or not as their label.

    The one place that decides it, of logits as the network gives them: one that computes in bfloat16 has ties
    that its logits in float32 have not. False where the logits are not finite, for they say nothing.
    """
    # XLA leaves out a rounding to bfloat16 whose result it goes on with in float32. Not through this.
    logits = jax.lax.optimization_barrier(logits)
    labels, targets = checked_classes(spec, logits, batch)
    wanted = targets if spec.targeted else labels
    wanted = wanted if spec.targeted or not spec.soft_labels else jnp.argmax(wanted, axis=-1)
    return ((jnp.argmax(logits, axis=-1) == wanted) == spec.targeted) & usable(logits)


def usable(logits: jax.Array) -> jax.Array:
    """Tell which rows of logits say something: no NaN, and the largest is finite.

    Args:
      logits: Shape (n, classes). Minus infinity is the logit of a class that is masked out.

    Returns:
      Shape (n,), bool.

    Example:
      >>> usable(jnp.array([[0.0, -jnp.inf], [0.0, jnp.nan], [0.0, jnp.inf]])).tolist()
      [True, False, False]
    """
    return jnp.isfinite(jnp.max(logits, axis=-1))


def check_classes(loss_fn: LossFn, params: Params, batch: Any) -> None:
    """Raise when labels or targets are no classes of the network; warn of targets that equal the label.

    Nothing is checked of a loss that does not carry its logits, and of traced values.
    """
    if not carries_logits(loss_fn):
        return
    logits_fn, spec = parts(loss_fn)
    labels, targets = carrying.classes_of(spec, batch)
    if trees.is_traced(labels, targets):
        return
    logits = jax.eval_shape(logits_fn, params, get_inputs(batch, spec.inputs_key))
    checked_classes(spec, logits, batch)
    if spec.soft_labels:
        _check_probabilities(np.asarray(labels, np.float64))
        return
    num_classes = logits.shape[-1]
    known = {"labels": labels, "targets": targets}
    known = {name: np.asarray(values) for name, values in known.items() if values is not None}
    for name, values in known.items():
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"The {name} must lie in [0, {num_classes - 1}], one of {num_classes} classes, "
                f"got values from {low} to {high}."
            )
    if len(known) == 2 and (same := int(np.sum(known["labels"] == known["targets"]))):
        warnings.warn(
            f"{same} of {len(known['labels'])} targets equal the label: such an example counts as fallen "
            "where it is right. Choose other targets.",
            stacklevel=4,
        )


def checked_draws(eot: int | None) -> int | None:
    """Return a number of draws, or raise unless it is None or at least 1."""
    return None if eot is None else count(eot=eot)


def check_keys(eot: int | None, loss_fn: LossFn, batch: Any) -> None:
    """Raise where an expectation is asked for and neither the loss nor the batch holds a random key."""
    if eot is not None and not any(map(_is_key, jax.tree.leaves((trees.as_partial(loss_fn), batch)))):
        raise ValueError(
            f"`eot` asks for {eot} draws, but there is no random key in the batch, nor one bound to the loss "
            "with jax.tree_util.Partial; make it with jax.random.key."
        )


def _check_probabilities(known: np.ndarray) -> None:
    # NaN passes: a network that has diverged is not the caller's mistake.
    low, off = known.min(initial=0), np.abs(known.sum(axis=-1) - 1).max(initial=0)
    if low < 0 or off > _SUM_TOLERANCE:
        raise ValueError(
            "The label probabilities must be at least 0 and sum to 1 for each example, got a smallest one of "
            f"{low:g} and a sum that is off by {off:g}: pass jax.nn.softmax(logits)."
        )


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _drawn(loss_fn: LossFn, batch: Any, number: jax.Array) -> tuple[LossFn, Any]:
    def fold(leaf: Any) -> Any:
        if not _is_key(leaf):
            return leaf
        folded = jax.vmap(lambda key: jax.random.fold_in(key, number))(leaf.reshape(-1))
        return folded.reshape(leaf.shape)

    return jax.tree.map(fold, (trees.as_partial(loss_fn), batch))
