"""C1 and C2: small convolutional networks of the batch-size papers (arXiv:1802.08241).

Each convolution is followed by ReLU, then batch norm (after it, not before). The published code declares two
dropouts for C2 and never applies them: there are none here.
"""

import functools

import jax
from flax import linen as nn
from flax.typing import Dtype

from hessabs.models import layers


class C1(layers.Classifier):
    """Convolutions, each with ReLU and batch norm, and pooling; then fully connected layers; see ``c1``."""

    widths: tuple[int, ...] = (64, 64)
    hidden: tuple[int, ...] = (384, 192)
    dtype: Dtype | None = None
    convolutions: int = 1  # before each pooling
    kernel: int = 5
    padding: int | None = None  # None: half of the kernel
    pool: tuple[int, int, int] = (3, 2, 1)  # window, stride, padding
    smallest: int = 1  # side of an image

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x, self.smallest)
        conv = functools.partial(layers.conv, padding=self.padding, use_bias=True, dtype=self.dtype)
        for width in self.widths:
            for _ in range(self.convolutions):
                x = layers.batch_norm(nn.relu(conv(x, width, self.kernel)), train=train, dtype=self.dtype)
            x = layers.max_pool(x, *self.pool)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(layers.dense(x, width, dtype=self.dtype))
        return layers.logits(x, self.num_classes, dtype=self.dtype)


def c1(num_classes: int = 10, *, dtype: Dtype | None = None) -> C1:
    """Create C1: 64 and 64 channels, then 384 and 192 hidden units.

    With 10 classes and 32x32x3 images it has 1,756,682 parameters. All layers start as PyTorch's
    default, uniform in plus or minus 1 / sqrt(fan_in). Batch norm as in ``resnet20``.
    """
    return C1(num_classes, dtype=dtype)


def c1_small(num_classes: int = 10, *, dtype: Dtype | None = None) -> C1:
    """Create C1 with fewer units: 8 and 16 channels, then 96 and 48 hidden units.

    A convolutional network for which an epoch of small images takes seconds on a CPU. With 10 classes
    and 28x28x1 images it has 83,978 parameters.
    """
    return C1(num_classes, widths=(8, 16), hidden=(96, 48), dtype=dtype)


class C2(C1):
    """Two pairs of convolutions, each pair pooled; then fully connected layers; see ``c2``."""

    widths: tuple[int, ...] = (64, 128)
    hidden: tuple[int, ...] = (256, 256)
    convolutions: int = 2
    kernel: int = 3
    padding: int | None = 0
    pool: tuple[int, int, int] = (2, 2, 0)
    smallest: int = 16


def c2(num_classes: int = 10, *, dtype: Dtype | None = None) -> C2:
    """Create C2: 64, 64, 128 and 128 channels, then 256 and 256 hidden units.

    With 10 classes and 32x32x3 images it has 1,148,746 parameters. Each convolution is followed by
    ReLU, then batch norm. All layers start as PyTorch's default. Batch norm as in ``resnet20``.
    Images must be 16x16 at least.
    """
    return C2(num_classes, dtype=dtype)
