"""Residual networks (He et al. 2015, arXiv:1512.03385) for small images (section 4.2) and ImageNet (table 1).

Differs from the paper: where the shape changes the shortcut is a 1x1 convolution with batch norm, not padding
with zeros, as in the networks behind the published batch-size experiments; and as in torchvision the 3x3
convolution of a bottleneck has the stride, not the first 1x1.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from hessabs.models import layers

_WIDTHS = (64, 128, 256, 512)


class ResNet(layers.Classifier):
    """Stages of basic or bottleneck blocks behind a stem; see ``resnet20``."""

    blocks: tuple[int, ...] = (3, 3, 3)
    widths: tuple[int, ...] = (16, 32, 64)
    block: Literal["basic", "bottleneck"] = "basic"
    stem: Literal["3x3", "7x7"] = "3x3"  # 7x7: stride 2, then 3x3 max pooling of stride 2
    kernel_init: Callable[..., jax.Array] = layers.HE_FAN_OUT
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x)
        conv = functools.partial(layers.conv, kernel_init=self.kernel_init, dtype=self.dtype)
        norm = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        if self.stem == "3x3":
            x = nn.relu(norm(conv(x, self.widths[0], 3)))
        else:
            x = layers.max_pool(nn.relu(norm(conv(x, self.widths[0], 7, 2))), 3, 2, padding=1)
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                if self.block == "basic":
                    y = nn.relu(norm(conv(x, width, 3, stride)))
                    y = norm(conv(y, width, 3))
                else:
                    y = nn.relu(norm(conv(x, width, 1)))
                    y = nn.relu(norm(conv(y, width, 3, stride)))
                    y = norm(conv(y, 4 * width, 1))
                if y.shape != x.shape:
                    x = norm(conv(x, y.shape[-1], 1, stride))
                x = nn.relu(x + y)
        x = jnp.mean(x, axis=(1, 2))
        return layers.logits(x, self.num_classes, dtype=self.dtype)


def resnet20(num_classes: int = 10, *, dtype: Dtype | None = None) -> ResNet:
    """Create the 20-layer residual network for small images.

    With 10 classes and 32x32x3 images it has 272,474 parameters; whatever is left of the image is
    averaged before the last layer, so 28x28x1 and 8x8x1 work too. Convolutions have no bias and
    start He normal by fan-out, the last layer as PyTorch's default.

    Batch norm has momentum 0.9 and epsilon 1e-5. In training it takes the statistics of the
    micro-batch it is given, whatever batch the gradient is accumulated to (ghost batch norm). The
    running variance is the biased one, as flax has it; PyTorch's is unbiased. With ``train=True`` pass
    ``mutable=["batch_stats"]`` and take the new statistics from what comes back.

    Example:
        >>> x = jnp.zeros((1, 32, 32, 3))
        >>> variables = jax.eval_shape(resnet20().init, jax.random.key(0), x)
        >>> sorted(variables), sum(p.size for p in jax.tree.leaves(variables["params"]))
        (['batch_stats', 'params'], 272474)
    """
    return ResNet(num_classes, dtype=dtype)


def resnet18_cifar(num_classes: int = 10, *, dtype: Dtype | None = None) -> ResNet:
    """Create the 18-layer residual network with a 3x3 stem, of widths 64, 128, 256 and 512.

    With 10 classes and 32x32x3 images it has 11,173,962 parameters. All layers start as PyTorch's
    default, as in the definition that is in common use for CIFAR.
    """
    return ResNet(
        num_classes, blocks=(2, 2, 2, 2), widths=_WIDTHS, kernel_init=layers.TORCH_KERNEL, dtype=dtype
    )


def resnet18(num_classes: int = 1000, *, dtype: Dtype | None = None) -> ResNet:
    """Create ResNet-18 for ImageNet.

    With 1,000 classes it has 11,689,512 parameters; images are 224x224x3, smaller ones work too.
    Convolutions start He normal by fan-out, the last layer as PyTorch's default.
    """
    return ResNet(num_classes, blocks=(2, 2, 2, 2), widths=_WIDTHS, stem="7x7", dtype=dtype)


def resnet50_tiny(num_classes: int = 200, *, dtype: Dtype | None = None) -> ResNet:
    """Create ResNet-50 for Tiny ImageNet: 64x64x3 images behind the same 7x7 stem.

    With 200 classes it has 23,917,832 parameters. Layers start as those of ``resnet18``.
    """
    return ResNet(num_classes, blocks=(3, 4, 6, 3), widths=_WIDTHS, block="bottleneck", stem="7x7", dtype=dtype)
