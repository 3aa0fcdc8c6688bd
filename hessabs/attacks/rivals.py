"""The other classes of each example, and how the way to them looks from where it is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from hessabs import trees
from hessabs.attacks import losses
from hessabs.attacks.losses.carrying import checked_classes, classes_of
from hessabs.attacks.losses.criteria import other_classes
from hessabs.attacks.losses.examples import has_fallen
from hessabs.typing import LossFn, Params

_FEW = 9  # rivals to look at where nobody says how many


def top_rivals(logits: jax.Array, labels: jax.Array, num_rivals: int | None) -> jax.Array:
    """Return the other classes with the largest logits, (n, num_rivals) int32, largest first.

    None stands for 9, or all that there are; more than that raise.
    """
    num_classes = logits.shape[-1]
    if (num_rivals is not None and num_rivals > num_classes - 1) or num_classes < 2:
        raise ValueError(
            f"`num_rivals` asks for {num_rivals or 1} other classes, but the network has {num_classes} classes."
        )
    # Not top_k: with the rows on several devices XLA would send all logits to each of them.
    order = jnp.argsort(-other_classes(logits, labels), axis=-1).astype(jnp.int32)
    return order[:, : min(_FEW, num_classes - 1) if num_rivals is None else num_rivals]


class Network(NamedTuple):
    """A network whose classes an attack looks at, and where its batches hold what: a pytree."""

    logits_fn: Partial
    params: Params
    spec: trees.Static

    def logits(self, inputs: jax.Array) -> jax.Array:
        """Return its logits, (n, classes)."""
        return self.logits_fn(self.params, inputs)

    def classes(self, batch: Any, logits: jax.Array | None = None) -> tuple[Any, Any]:
        """Take labels and targets out of a batch, and see whether they fit the logits if these are given."""
        spec = self.spec.value
        return classes_of(spec, batch) if logits is None else checked_classes(spec, logits, batch)

    def fallen(self, batch: Any, logits: jax.Array) -> jax.Array:
        """Tell which examples of a batch have fallen."""
        return has_fallen(self.spec.value, logits, batch)


def network_of(loss_fn: LossFn, params: Params, wanted_by: str) -> Network:
    """Take the network out of a loss, which must carry its logits."""
    logits_fn, spec = losses.parts(loss_fn, wanted_by)
    return Network(trees.as_partial(logits_fn), params, trees.Static(spec))


def leads(
    network: Network, inputs: jax.Array, labels: jax.Array | None, rivals: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measure how far each rival's logit is ahead of the label's, and the gradient of that.

    One forward pass, and one backward pass with ``num_rivals`` examples for each one of the batch.

    Returns:
      ``(logits, leads, gradients)``: (n, classes); ``z_rival - z_label``, (n, num_rivals), below 0 where the
      label wins (the best of all other classes where labels are None); its gradient, (n, num_rivals, ...), 0
      where it is not finite.
    """
    logits, pull = jax.vjp(lambda x: trees.upcast(network.logits(x)), inputs)
    one_hot = jax.nn.one_hot(rivals, logits.shape[-1], dtype=logits.dtype)
    if labels is None:
        own = jnp.argmax(jnp.where(one_hot > 0, -jnp.inf, logits[:, None]), axis=-1)
    else:
        own = labels[:, None]
    differences = one_hot - jax.nn.one_hot(own, logits.shape[-1], dtype=logits.dtype)
    (gradients,) = jax.vmap(pull, in_axes=1, out_axes=1)(differences)
    ahead = jnp.take_along_axis(logits, rivals, axis=-1) - jnp.take_along_axis(logits, own, axis=-1)
    return logits, ahead, trees.finite_or_zero(gradients)
