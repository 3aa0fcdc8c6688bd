"""Residual networks with the 7x7 stem of ImageNet (He et al. 2015, arXiv:1512.03385, table 1).

Differs from the paper, as torchvision does: the 3x3 convolution of a bottleneck has the stride, not the
first 1x1.
"""

from flax.typing import Dtype

from hessabs.models import layers
from hessabs.models.resnet import ResNet

_WIDTHS = (64, 128, 256, 512)


def resnet18(num_classes: int = 1000, *, dtype: Dtype | None = None) -> ResNet:
    """Create ResNet-18 for ImageNet.

    With 1,000 classes it has 11,689,512 parameters; images are 224x224x3, smaller ones work too.
    Convolutions start He normal by fan-out, the last layer as PyTorch's default.

    Args:
        num_classes: The number of classes, at least 1.
        dtype: As for ``resnet20``.

    Returns:
        As ``resnet20``.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> from hessabs.models import num_params
        >>> num_params(resnet18(), (224, 224, 3))
        11689512
    """
    layers.check_classes(num_classes)
    return ResNet(num_classes=num_classes, blocks=(2, 2, 2, 2), widths=_WIDTHS, stem="7x7", dtype=dtype)


def resnet50_tiny(num_classes: int = 200, *, dtype: Dtype | None = None) -> ResNet:
    """Create ResNet-50 for Tiny ImageNet: 64x64x3 images behind the same 7x7 stem.

    With 200 classes it has 23,917,832 parameters. Layers start as those of ``resnet18``.

    Args:
        num_classes: The number of classes, at least 1.
        dtype: As for ``resnet20``.

    Returns:
        As ``resnet20``.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> from hessabs.models import num_params
        >>> num_params(resnet50_tiny(), (64, 64, 3))
        23917832
    """
    layers.check_classes(num_classes)
    return ResNet(
        num_classes=num_classes,
        blocks=(3, 4, 6, 3),
        widths=_WIDTHS,
        block="bottleneck",
        stem="7x7",
        dtype=dtype,
    )
