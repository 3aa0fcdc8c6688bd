"""SqueezeNext for small images (Gholami et al. 2018, arXiv:1803.10615), in its form for CIFAR."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from hessabs.models import layers


class SqueezeNext(layers.Classifier):
    """Four stages of squeezing blocks with separable convolutions; see ``squeezenext23``."""

    blocks: tuple[int, ...] = (6, 6, 8, 1)
    widths: tuple[int, ...] = (32, 64, 128, 256)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x)
        conv = functools.partial(layers.conv, use_bias=True, dtype=self.dtype)
        norm = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)

        def unit(x: jax.Array, *args: int | tuple[int, int]) -> jax.Array:
            return nn.relu(norm(conv(x, *args)))  # type: ignore[arg-type]

        x = unit(x, 64, 3)
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                channels = x.shape[-1]
                # A block halves its channels, then halves them again; where it halves the image it keeps
                # them first, and where it narrows them it takes a quarter.
                wide = channels if stride == 2 else channels // 4 if channels > width else channels // 2
                y = unit(x, wide, 1, stride)
                y = unit(y, wide // 2, 1)
                y = unit(y, wide, (1, 3))
                y = unit(y, wide, (3, 1))
                y = unit(y, width, 1)
                shortcut = x if channels == width and stride == 1 else norm(conv(x, width, 1, stride))
                x = nn.relu(y + nn.relu(shortcut))
        x = jnp.mean(unit(x, 128, 1), axis=(1, 2))
        return layers.logits(x, self.num_classes, dtype=self.dtype)


def squeezenext23(num_classes: int = 10, *, dtype: Dtype | None = None) -> SqueezeNext:
    """Create 1.0-SqueezeNext-23 for small images: stages of 6, 6, 8 and 1 blocks.

    With 10 classes and 32x32x3 images it has 588,666 parameters. Convolutions have biases; all layers
    start as PyTorch's default. Batch norm as in ``resnet20``.

    Differs from the paper: as in the networks behind the published batch-size experiments, the stem is
    3x3 without pooling, every block takes its 1x3 convolution first, and the shortcut has a ReLU.
    """
    return SqueezeNext(num_classes, dtype=dtype)
