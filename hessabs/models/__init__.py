"""Networks of the experiments, one a file, as factories that return a ``flax.linen`` module."""

from collections.abc import Callable

from flax import linen as nn

from hessabs.models.mlp import MLP, mlp
from hessabs.models.resnet import ResNet, resnet20

MODELS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "resnet20": resnet20}
"""The networks by name; each factory takes ``num_classes`` and ``dtype``."""


def create(name: str, num_classes: int) -> nn.Module:
    """Create a network by its name.

    Args:
        name: A key of ``MODELS``.
        num_classes: The number of classes, at least 1.

    Returns:
        A module called as ``module.apply(variables, x, train=False)``.

    Raises:
        ValueError: There is no network of that name, or ``num_classes`` is below 1.

    Example:
        >>> create("mlp", 10).hidden
        (256, 256)
    """
    if name not in MODELS:
        raise ValueError(f"`name` must be one of {', '.join(sorted(MODELS))}, got {name!r}.")
    return MODELS[name](num_classes=num_classes)


__all__ = ["MLP", "MODELS", "ResNet", "create", "mlp", "resnet20"]
