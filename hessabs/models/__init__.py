"""Networks of the experiments, one a file, as factories that return a ``flax.linen`` module.

Each takes ``num_classes``, at least 1 (else a ``ValueError``), and ``dtype``, that of the computation
(``jnp.bfloat16``, say), by default that of the input and the parameters; parameters are float32 and logits at
least float32. The module is called as ``module.apply(variables, x, train=False)``, with ``x`` floating point
(N, H, W, C) in [0, 1], or tokens; the result is (N, num_classes).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from hessabs import trees
from hessabs.models.alexnet import AlexNet, adaptive_average_pool, alexnet, alexnet_svhn
from hessabs.models.c1_c2 import C1, C2, c1, c1_small, c2
from hessabs.models.mlp import MLP, mlp
from hessabs.models.resnet import ResNet, resnet18, resnet18_cifar, resnet20, resnet50_tiny
from hessabs.models.squeezenext import SqueezeNext, squeezenext23
from hessabs.models.transformer import CharTransformer, char_transformer, char_transformer_small
from hessabs.models.wide_resnet import WideResNet, wide_resnet16_4

MODELS: dict[str, Callable[..., nn.Module]] = {
    factory.__name__: factory
    for factory in (
        *(alexnet, alexnet_svhn, c1, c1_small, c2, char_transformer, char_transformer_small, mlp),
        *(resnet18, resnet18_cifar, resnet20, resnet50_tiny, squeezenext23, wide_resnet16_4),
    )
}
"""The networks by name; each factory takes ``num_classes`` and ``dtype``."""

OF_TEXT = ("char_transformer", "char_transformer_small")
"""Those whose inputs are tokens; all others take images."""


def create(name: str, num_classes: int) -> nn.Module:
    """Create a network by its name.

    Args:
        name: A key of ``MODELS``.
        num_classes: The number of classes, at least 1.

    Returns:
        A module called as ``module.apply(variables, x, train=False)``, with images or tokens ``x``.

    Raises:
        ValueError: There is no network of that name, or ``num_classes`` is below 1.

    Example:
        >>> create("mlp", 10).hidden
        (256, 256)
    """
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {', '.join(sorted(MODELS))}, got {name!r}.")
    return MODELS[name](num_classes=num_classes)


def num_params(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Count the parameters of a network without computing anything.

    Args:
        model: A network of this package.
        image_shape: (height, width, channels) of its images.

    Returns:
        The number of parameters, statistics of batch norm not among them.

    Example:
        >>> num_params(mlp(), (28, 28, 1)), num_params(resnet20(), (32, 32, 3))
        (269322, 272474)
    """
    image = jnp.zeros((1, *image_shape))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return trees.size(variables["params"])


__all__ = [
    "C1",
    "C2",
    "MLP",
    "MODELS",
    "OF_TEXT",
    "AlexNet",
    "CharTransformer",
    "ResNet",
    "SqueezeNext",
    "WideResNet",
    "adaptive_average_pool",
    "alexnet",
    "alexnet_svhn",
    "c1",
    "c1_small",
    "c2",
    "char_transformer",
    "char_transformer_small",
    "create",
    "mlp",
    "num_params",
    "resnet18",
    "resnet18_cifar",
    "resnet20",
    "resnet50_tiny",
    "squeezenext23",
    "wide_resnet16_4",
]
