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
"""

from hessabs.attacks import losses
from hessabs.attacks.adam_pgd import adam_pgd
from hessabs.attacks.apgd import apgd
from hessabs.attacks.bim import bim
from hessabs.attacks.carlini_wagner import carlini_wagner
from hessabs.attacks.deepfool import deepfool
from hessabs.attacks.ensemble import ensemble
from hessabs.attacks.evaluate import evaluate
from hessabs.attacks.gradient import fgsm, l2grad
from hessabs.attacks.mi_fgsm import mi_fgsm
from hessabs.attacks.mixing import num_replaced, replace_fraction
from hessabs.attacks.outcomes import Evaluation
from hessabs.attacks.pgd import pgd
from hessabs.attacks.second_order import fhsm, l2hess
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
