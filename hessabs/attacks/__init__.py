"""What is the worst input nearby? Perturbed batches from a loss and a batch."""

from hessabs.attacks.gradient import fgsm
from hessabs.attacks.mixing import num_replaced, replace_fraction

__all__ = ["fgsm", "num_replaced", "replace_fraction"]
