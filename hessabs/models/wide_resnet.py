"""Wide residual networks for small images (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from hessabs.models import layers


class WideResNet(layers.Classifier):
    """Three groups of pre-activation blocks behind a 3x3 stem; see ``wide_resnet16_4``."""

    blocks_per_group: int = 2
    widen: int = 4
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x)
        conv = functools.partial(layers.conv, kernel_init=layers.HE_FAN_OUT, dtype=self.dtype)
        norm = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        x = conv(x, 16, 3)
        for group in range(3):
            width = 16 * 2**group * self.widen
            for block in range(self.blocks_per_group):
                stride = 2 if group > 0 and block == 0 else 1
                y = nn.relu(norm(x))
                # Where the width changes, the shortcut starts behind the activation.
                shortcut = x if x.shape[-1] == width else conv(y, width, 1, stride)
                y = nn.relu(norm(conv(y, width, 3, stride)))
                x = shortcut + conv(y, width, 3)
        x = jnp.mean(nn.relu(norm(x)), axis=(1, 2))
        return layers.logits(x, self.num_classes, dtype=self.dtype, bias_init=nn.initializers.zeros)


def wide_resnet16_4(num_classes: int = 10, *, dtype: Dtype | None = None) -> WideResNet:
    """Create Wide-ResNet-16-4: two blocks a group of widths 64, 128 and 256, no dropout.

    With 10 classes and 32x32x3 images it has 2,748,890 parameters. Convolutions have no bias and start
    He normal by fan-out; the last layer starts as PyTorch's default with zero bias. Batch norm as in
    ``resnet20``.
    """
    return WideResNet(num_classes, dtype=dtype)
