"""C1: two 5x5 convolutions and three fully connected layers, of the batch-size papers (arXiv:1802.08241).

Each convolution is followed by ReLU, batch norm (after it, not before) and 3x3 max pooling of stride 2.
"""

import jax
from flax import linen as nn
from flax.typing import Dtype

from hessabs import trees
from hessabs.models import layers


class C1(nn.Module):
    """Convolution, ReLU, batch norm, pooling, twice; then fully connected layers; see ``c1``."""

    num_classes: int
    widths: tuple[int, ...] = (64, 64)
    hidden: tuple[int, ...] = (384, 192)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x)
        for width in self.widths:
            x = nn.relu(layers.conv(x, width, 5, use_bias=True, dtype=self.dtype))
            x = layers.batch_norm(x, train=train, dtype=self.dtype)
            x = layers.max_pool(x, 3, 2, padding=1)
        x = x.reshape(x.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(layers.dense(x, width, dtype=self.dtype))
        return trees.upcast(layers.dense(x, self.num_classes, dtype=self.dtype))


def c1(num_classes: int = 10, *, dtype: Dtype | None = None) -> C1:
    """Create C1: 64 and 64 channels, then 384 and 192 hidden units.

    With 10 classes and 32x32x3 images it has 1,756,682 parameters. All layers start as PyTorch's
    default, uniform in plus or minus 1 / sqrt(fan_in). Batch norm as in ``resnet20``.

    Args:
        num_classes: The number of classes, at least 1.
        dtype: The dtype of the computation (``jnp.bfloat16``, say); that of the input and the
            parameters by default. Parameters and statistics are float32, logits at least float32.

    Returns:
        A module called as ``module.apply(variables, x, train=False)``, with ``x`` floating point
        (N, H, W, C) in [0, 1]; the result is (N, num_classes).

    Raises:
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> from hessabs.models import num_params
        >>> num_params(c1(), (32, 32, 3))
        1756682
    """
    layers.check_classes(num_classes)
    return C1(num_classes=num_classes, dtype=dtype)


def c1_small(num_classes: int = 10, *, dtype: Dtype | None = None) -> C1:
    """Create C1 with fewer units: 8 and 16 channels, then 96 and 48 hidden units.

    A convolutional network for which an epoch of small images takes seconds on a CPU. With 10 classes
    and 28x28x1 images it has 83,978 parameters.

    Args:
        num_classes: The number of classes, at least 1.
        dtype: As for ``c1``.

    Returns:
        As ``c1``.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> from hessabs.models import num_params
        >>> num_params(c1_small(), (28, 28, 1))
        83978
    """
    layers.check_classes(num_classes)
    return C1(num_classes=num_classes, widths=(8, 16), hidden=(96, 48), dtype=dtype)
