"""What is the worst input nearby? Perturbed batches from a loss and a batch.

An attack is ``attack(loss_fn, params, batch, key=None) -> batch``, made by a factory of this package. A batch
may be any mapping, named tuple, tuple or list with a leaf of inputs; epsilon and bounds are in its units, and a
normalisation of the inputs belongs inside the model.

Attacks that follow the gradient, and ``square``, take any mean loss. Those that look at classes
(``trust_region``, ``deepfool``, ``carlini_wagner``, ``ensemble``, ``evaluate``) need the logits, which a mean
does not show: pass a loss that carries them, ``losses.cross_entropy(logits_fn)`` or another one of
``attacks.losses``, with ``logits_fn(params, inputs) -> (n, classes)``. The other attacks take it too, and then
know when an example has fallen: they stop there, and return a point at which it fell rather than one of a
higher loss.

Arguments that several factories share:

* ``epsilon``: Radius of the ball in ``norm``, in the units of the batch (of an image in [0, 1], 0.005 is 1.3
  grey levels of 255), at least 0.
* ``norm``: ``"linf"``, ``"l2"`` or ``"l1"``, as far as the attack has them.
* ``steps``: Gradient steps (of each restart), at least 1.
* ``restarts``: Random starts, at least 1; the result is the best of all.
* ``random_start``: Start uniformly in the ball, which needs a key; otherwise at the example.
* ``bounds``: (lowest, highest) value of an input, or None.
* ``inputs_key``: Key, field name or index of the inputs in the batch.
* ``early_exit``: Stop each example, all its restarts, where it falls. False goes on to higher losses, as robust
  training wants.
* ``eot``: Draws of the random numbers of the loss (dropout), by keys in the batch or bound to the loss, over
  which each step averages, or None for the loss as it is.
* ``loop``: ``"host"``, ``"device"``, or None to choose; see ``hessabs.loops``.

A factory raises ``ValueError`` if an argument is out of range. So does an attack if the inputs are missing,
not finite or outside the bounds, labels or targets are no classes of the network, or there is no key, or no
logits, where one needs them. Traced values cannot raise: under jit an entry outside the bounds gets no farther
out, and stays where it is if nothing moves it.
"""

from hessabs.attacks import losses
from hessabs.attacks.apgd import apgd
from hessabs.attacks.carlini_wagner import carlini_wagner
from hessabs.attacks.deepfool import deepfool
from hessabs.attacks.ensemble import ensemble
from hessabs.attacks.evaluate import evaluate
from hessabs.attacks.mixing import num_replaced, replace_fraction
from hessabs.attacks.one_step import fgsm, fhsm, l2grad, l2hess
from hessabs.attacks.outcomes import Evaluation
from hessabs.attacks.pgd import adam_pgd, bim, mi_fgsm, pgd
from hessabs.attacks.square import square
from hessabs.attacks.trust_region import trust_region

__all__ = [
    "Evaluation",
    "adam_pgd",
    "apgd",
    "bim",
    "carlini_wagner",
    "deepfool",
    "ensemble",
    "evaluate",
    "fgsm",
    "fhsm",
    "l2grad",
    "l2hess",
    "losses",
    "mi_fgsm",
    "num_replaced",
    "pgd",
    "replace_fraction",
    "square",
    "trust_region",
]
