"""What an attack raises: cross-entropy, margin, difference-of-logits ratio, Kullback-Leibler divergence.

Logits are arrays of shape (n, classes), labels and targets int (n,).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hessabs import trees
from hessabs.attacks.losses.carrying import LogitsFn, from_logits
from hessabs.typing import LossFn


def cross_entropy(logits_fn: LogitsFn, **options: Any) -> LossFn:
    """Make the cross-entropy of the label, or minus that of the target.

    ``log(1 + sum_{k != y} exp(z_k - z_y))``: its gradient keeps its digits where the network is nearly certain,
    until it underflows, and is exactly zero from there: where the label is ahead by about 90, or by about 17
    where the inputs, or the network, are float16.

    Args:
      logits_fn, **options: As in ``from_logits``.

    Returns:
      ``loss_fn(params, batch) -> scalar`` in nats.

    Example:
      >>> batch = {"image": jnp.array([[0.0, 0.0]]), "label": jnp.array([1])}
      >>> round(float(cross_entropy(lambda w, x: x @ w)(jnp.eye(2), batch)), 4)
      0.6931
    """
    _refuse_soft_labels("cross_entropy", options)
    return from_logits(logits_fn, _cross_entropy, **options)


def margin(logits_fn: LogitsFn, **options: Any) -> LossFn:
    """Make the margin: the best other logit minus the label's; targeted, the target's minus the best other.

    Positive where the example has fallen, negative where it stands; 0 at a tie.

    Args:
      logits_fn, **options: As in ``from_logits``.

    Returns:
      ``loss_fn(params, batch) -> scalar``.

    Example:
      >>> batch = {"image": jnp.array([[3.0, 1.0]]), "label": jnp.array([0])}
      >>> margin(lambda w, x: x @ w)(jnp.eye(2), batch)
      Array(-2., dtype=float32)

    References:
      Carlini and Wagner (2017), arXiv:1608.04644, section V-A, f_6 without its confidence.
    """
    _refuse_soft_labels("margin", options)
    return from_logits(logits_fn, _margin, **options)


def dlr(logits_fn: LogitsFn, **options: Any) -> LossFn:
    """Make the difference-of-logits ratio, which neither the scale nor the shift of the logits changes.

    ``-(z_y - max_{i != y} z_i) / (z_1 - z_3)`` with ``z_1 >= z_2 >= ...`` the sorted logits; targeted,
    ``-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2)``. It is 0 where the denominator is.

    Args:
      logits_fn, **options: As in ``from_logits``, with at least 3 classes, 4 when targeted; labels are read in
        both cases.

    Returns:
      ``loss_fn(params, batch) -> scalar``. It raises ``ValueError`` when there are too few classes.

    Example:
      >>> batch = {"image": jnp.array([[3.0, 1.0, -1.0]]), "label": jnp.array([0])}
      >>> dlr(lambda w, x: x @ w)(jnp.eye(3), batch)
      Array(-0.5, dtype=float32)

    References:
      Croce and Hein (2020), arXiv:2003.01690, equations 6 and 7.
    """
    _refuse_soft_labels("dlr", options)
    return from_logits(logits_fn, difference_of_logits, **options)


def kl(logits_fn: LogitsFn, *, label_key: str | int = "probabilities", **options: Any) -> LossFn:
    """Make the Kullback-Leibler divergence from given class probabilities, as TRADES raises it.

    ``sum_k p_k (log p_k - log softmax(z)_k)``; an example has fallen when it is no longer classified as the
    most probable class. There is no targeted form: give the probabilities to leave.

    Args:
      logits_fn, **options: As in ``from_logits``.
      label_key: Key, field name or index of the probabilities in the batch, float (n, classes).

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
    return from_logits(logits_fn, _kl, label_key=label_key, soft_labels=True, **options)


def _refuse_soft_labels(name: str, options: Mapping[str, Any]) -> None:
    if options.get("soft_labels"):
        raise ValueError(
            f"`{name}` takes classes for labels, got soft_labels=True; for class probabilities use `kl`, whose "
            "gradient is that of their cross-entropy."
        )


def difference_of_logits(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    """Return the difference-of-logits ratio of each example, the untargeted one where targets are None."""
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


def other_classes(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logits with that of one class a row put to minus infinity."""
    return jnp.where(jax.nn.one_hot(classes, logits.shape[-1], dtype=bool), -jnp.inf, logits)


def take_class(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return the logit of one class a row; nan where there is no such class."""
    # Not indexed: with the rows on several devices XLA would send all logits to each of them.
    here = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    taken = jnp.sum(jnp.where(here, logits, 0), axis=-1)
    return jnp.where(jnp.any(here, axis=-1), taken, jnp.nan)


def _cross_entropy(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    # Not of log_softmax: where one class is nearly certain its gradient, 1 - p, is the rounding of p.
    wanted = labels if targets is None else targets
    behind = jax.nn.logsumexp(other_classes(logits, wanted), axis=-1) - take_class(logits, wanted)
    return jax.nn.softplus(behind) if targets is None else -jax.nn.softplus(behind)


def _margin(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    wanted = labels if targets is None else targets
    lead = take_class(logits, wanted) - jnp.max(other_classes(logits, wanted), axis=-1)
    return -lead if targets is None else lead


def _kl(logits: jax.Array, labels: Any, targets: Any) -> jax.Array:
    del targets
    # A class without probability adds nothing, masked out (a logit of minus infinity) or not.
    log_q = jnp.where(labels > 0, jax.nn.log_softmax(logits), 0)
    return jnp.sum(jax.scipy.special.xlogy(labels, labels) - labels * log_q, axis=-1)
