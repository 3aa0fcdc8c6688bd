"""Losses that carry the logits they are made of: the one convention for attacks that look at classes.

A loss of this package is ``loss_fn(params, batch) -> scalar`` like any other, the mean over the batch of what
an attack RAISES. It is a ``jax.tree_util.Partial`` that also holds ``logits_fn(params, inputs) -> (n,
classes)`` and says where the labels are, so one argument tells an attack everything: what to raise, when an
example has fallen, and which classes there are. Any other loss works with the attacks that need the gradient
alone; the value of one example is then the loss of the batch that holds it alone.
"""

from hessabs.attacks.losses.carrying import Criterion, LogitsFn, carries_logits, from_logits, parts
from hessabs.attacks.losses.criteria import cross_entropy, dlr, kl, margin
from hessabs.attacks.losses.examples import per_example, usable

__all__ = [
    "Criterion",
    "LogitsFn",
    "carries_logits",
    "cross_entropy",
    "dlr",
    "from_logits",
    "kl",
    "margin",
    "parts",
    "per_example",
    "usable",
]
