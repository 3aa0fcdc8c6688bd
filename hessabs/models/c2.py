"""C2: four 3x3 convolutions without padding and three fully connected layers (arXiv:1802.08241).

The published code declares two dropouts for this network and never applies them: there are none here.
"""

import jax
from flax import linen as nn
from flax.typing import Dtype

from hessabs import trees
from hessabs.models import layers


class C2(nn.Module):
    """Two pairs of convolutions, each pair pooled; then fully connected layers; see ``c2``."""

    num_classes: int
    widths: tuple[int, ...] = (64, 128)
    hidden: tuple[int, ...] = (256, 256)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x, smallest=16)
        for width in self.widths:
            for _ in range(2):
                x = nn.relu(layers.conv(x, width, 3, padding=0, use_bias=True, dtype=self.dtype))
                x = layers.batch_norm(x, train=train, dtype=self.dtype)
            x = layers.max_pool(x, 2, 2)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(layers.dense(x, width, dtype=self.dtype))
        return trees.upcast(layers.dense(x, self.num_classes, dtype=self.dtype))


def c2(num_classes: int = 10, *, dtype: Dtype | None = None) -> C2:
    """Create C2: 64, 64, 128 and 128 channels, then 256 and 256 hidden units.

    With 10 classes and 32x32x3 images it has 1,148,746 parameters. Each convolution is followed by
    ReLU, then batch norm. All layers start as PyTorch's default. Batch norm as in ``resnet20``.

    Args:
        num_classes: The number of classes, at least 1.
        dtype: As for ``c1``.

    Returns:
        As ``c1``; images must be 16x16 at least.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> from hessabs.models import num_params
        >>> num_params(c2(), (32, 32, 3))
        1148746
    """
    layers.check_classes(num_classes)
    return C2(num_classes=num_classes, dtype=dtype)
