"""AlexNet (Krizhevsky 2014, arXiv:1404.5997): for ImageNet, and its form for small images."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from hessabs.models import layers

_POOLED = 6  # side of the map that the fully connected layers see


class AlexNet(layers.Classifier):
    """Five convolutions behind an 11x11 stem of stride 4, three pools; see ``alexnet``."""

    stem_padding: int = 2
    pool: int = 3
    hidden: tuple[int, ...] = (4096, 4096)
    dropout: float = 0.5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x, smallest=63 if self.hidden else 16)
        x = nn.relu(layers.conv(x, 64, 11, 4, padding=self.stem_padding, use_bias=True, dtype=self.dtype))
        x = layers.max_pool(x, self.pool, 2)
        x = nn.relu(layers.conv(x, 192, 5, use_bias=True, dtype=self.dtype))
        x = layers.max_pool(x, self.pool, 2)
        for width in (384, 256, 256):
            x = nn.relu(layers.conv(x, width, 3, use_bias=True, dtype=self.dtype))
        x = layers.max_pool(x, self.pool, 2)
        if self.hidden:
            x = adaptive_average_pool(x, _POOLED)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            x = nn.relu(layers.dense(x, width, dtype=self.dtype))
        return layers.logits(x, self.num_classes, dtype=self.dtype)


def alexnet(num_classes: int = 1000, *, dtype: Dtype | None = None) -> AlexNet:
    """Create AlexNet for ImageNet: two hidden layers of 4,096 units, each behind dropout of 0.5.

    With 1,000 classes it has 61,100,840 parameters, whatever the size of the images (224x224x3; at
    least 63x63): what the convolutions leave is averaged to 6x6, as PyTorch's adaptive pooling does
    it. All layers start as PyTorch's default. With ``train=True`` pass ``rngs={"dropout": key}``.
    """
    return AlexNet(num_classes, dtype=dtype)


def alexnet_svhn(num_classes: int = 10, *, dtype: Dtype | None = None) -> AlexNet:
    """Create AlexNet for images of 32x32: the same convolutions, 2x2 pools and one dense layer.

    With 10 classes and 32x32x3 images it has 2,472,266 parameters. All layers start as PyTorch's
    default; there is no batch norm and no dropout. Images must be 16x16 at least.
    """
    return AlexNet(num_classes, stem_padding=5, pool=2, hidden=(), dtype=dtype)


def adaptive_average_pool(x: jax.Array, size: int) -> jax.Array:
    """Average images to ``size`` x ``size``, as PyTorch's ``AdaptiveAvgPool2d`` does.

    Cell i is the mean of the rows from floor(i H / size) to ceil((i + 1) H / size), likewise across.

    Args:
        x: Shape (N, H, W, C).
        size: The side of the result; it may exceed H and W.

    Returns:
        Shape (N, size, size, C).

    Example:
        >>> adaptive_average_pool(jnp.arange(9.0).reshape(1, 3, 3, 1), 2)[0, :, :, 0].tolist()
        [[2.0, 3.0], [5.0, 6.0]]
    """
    if x.shape[1:3] == (size, size):
        return x
    down, across = (jnp.asarray(_averaging(n, size), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ih,jw,nhwc->nijc", down, across, x)


def _averaging(length: int, size: int) -> np.ndarray:
    matrix = np.zeros((size, length))
    for i in range(size):
        start, stop = i * length // size, -(-(i + 1) * length // size)
        matrix[i, start:stop] = 1 / (stop - start)
    return matrix
