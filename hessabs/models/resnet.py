"""The 6n+2 residual network for small images (He et al. 2015, arXiv:1512.03385, section 4.2).

Differs from the paper: where the shape changes the shortcut is a 1x1 convolution with batch norm,
not padding with zeros, as in the networks behind the published batch-size experiments.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Dtype

from hessabs.models import layers


class ResNet(nn.Module):
    """Three stages of basic blocks behind a 3x3 stem; see ``resnet20``."""

    num_classes: int
    blocks_per_stage: int = 3
    widths: tuple[int, ...] = (16, 32, 64)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return the logits (N, num_classes) of images ``x`` (N, H, W, C)."""
        layers.check_images(x)
        conv = functools.partial(layers.conv, kernel_init=layers.HE_FAN_OUT, dtype=self.dtype)
        norm = functools.partial(layers.batch_norm, train=train, dtype=self.dtype)
        x = nn.relu(norm(conv(x, self.widths[0], 3)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                y = nn.relu(norm(conv(x, width, 3, stride)))
                y = norm(conv(y, width, 3))
                if y.shape != x.shape:
                    x = norm(conv(x, width, 1, stride))
                x = nn.relu(x + y)
        x = jnp.mean(x, axis=(1, 2))
        return layers.as_logits(layers.dense(x, self.num_classes, dtype=self.dtype))


def resnet20(num_classes: int = 10, *, dtype: Dtype | None = None) -> ResNet:
    """Create the 20-layer residual network for small images.

    With 10 classes and 32x32x3 images it has 272,474 parameters; whatever is left of the image is
    averaged before the last layer, so 28x28x1 and 8x8x1 work too. Convolutions have no bias and
    start He normal by fan-out, the last layer as PyTorch's default.

    Batch norm has momentum 0.9 and epsilon 1e-5. In training it takes the statistics of the
    micro-batch it is given, whatever batch the gradient is accumulated to (ghost batch norm). The
    running variance is the biased one, as flax has it; PyTorch's is unbiased.

    Args:
        num_classes: The number of classes, at least 1.
        dtype: The dtype of the computation (``jnp.bfloat16``, say); that of the input and the
            parameters by default. Parameters and statistics are float32, logits at least float32.

    Returns:
        A module called as ``module.apply(variables, x, train=False)``, with ``x`` floating point
        (N, H, W, C) in [0, 1]; the result is (N, num_classes). With ``train=True`` pass
        ``mutable=["batch_stats"]`` and take the new statistics from what comes back.

    Raises:
        ValueError: ``num_classes`` is below 1.

    Example:
        >>> x = jnp.zeros((1, 32, 32, 3))
        >>> variables = jax.eval_shape(resnet20().init, jax.random.key(0), x)
        >>> sorted(variables), sum(p.size for p in jax.tree.leaves(variables["params"]))
        (['batch_stats', 'params'], 272474)
    """
    layers.check_classes(num_classes)
    return ResNet(num_classes=num_classes, dtype=dtype)
